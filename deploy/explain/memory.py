"""How many bytes each process of a run holds: pure arithmetic over the sizes of its models."""

from collections.abc import Mapping

from common.config import RunConfig
from common.placement_config import DType
from common.ppo_config import PPOConfig
from deploy.explain.counts import longest_tokens, microbatch_rows, rows_without_gradients
from deploy.explain.figures import Figure, Group, counts
from deploy.explain.sizes import FLOAT_BYTES, PassSize, PolicySize, bytes_of, optimizer_bytes, publish_bytes


def memory_of_worker(config: RunConfig, ppo: PPOConfig, size: PolicySize, passes: PassSize | None) -> Group:
    """One rollout worker."""
    value = bytes_of(config.rollout.dtype)
    rows, tokens = config.rollout.batch_sequences or config.rollout.chunk_sequences, longest_tokens(ppo) - 1
    per_token = f"{passes.cache_values:,}" if passes else "?"
    copies = Figure(
        "engine_bytes",
        "copies of them to decode with, at most",
        size.parameters * value,
        'those of the Llama family, ordered as its products read them; none with rollout.engine = "generic"',
    )
    figures = [
        Figure(
            "weights_bytes",
            "weights",
            size.parameters * value,
            f"{size.parameters:,} parameters in {_served(config.rollout.dtype)}",
        ),
        *([copies] if config.rollout.engine == "auto" else []),
        Figure(
            "cache_bytes",
            "key-value cache, at most",
            rows * tokens * passes.cache_values * value if passes else None,
            f"{rows} rows × {tokens} tokens × {per_token} numbers × {value} bytes; the last token is not read",
        ),
        Figure(
            "sampling_bytes",
            "logits and probabilities (estimate)",
            3 * rows * size.vocabulary * FLOAT_BYTES,
            f"about 3 tables of {rows} rows × vocabulary of {size.vocabulary:,} in float32",
        ),
    ]
    return _summed("memory_worker", f"Memory of one rollout worker, × {config.rollout.workers}", figures)


def memory_of_replicas(
    config: RunConfig, ppo: PPOConfig, size: PolicySize | None, classifiers: Mapping[str, int | None]
) -> list[Group]:
    """One reward replica: while PPO learns, and in the evaluation, where there is one.

    Whoever evaluates holds the reference and the judge, whatever `ppo.reference` (`reward_service/build.py`).

    Args:
        config: the run.
        ppo: its PPO stage.
        size: of the policy; None: not known.
        classifiers: parameters of `reward_model` and `judge`; None: not known.
    """
    evaluate, number = config.evaluate, config.reward_service.replicas
    reference = _reference(config, ppo, size)
    scorers = []
    if config.reward_service.has_model:
        scorers = [_classifier("classifier_bytes", "the reward model, at most", classifiers["reward_model"])]
    evaluating = [*reference, *scorers, _classifier("judge_bytes", "the judge, at most", classifiers["judge"])]
    if evaluate is not None and evaluate.every_updates:
        learning = evaluating
    else:
        learning = [*(reference if ppo.reference == "service" else []), *scorers]
    groups = [_summed("memory_replica", f"Memory of one reward replica while PPO learns, × {number}", learning)]
    if evaluate is not None:
        title = f"Memory of one reward replica in the evaluation, × {number}"
        groups.append(_summed("memory_replica_evaluation", title, evaluating))
    return groups


def _reference(config: RunConfig, ppo: PPOConfig, size: PolicySize | None) -> list[Figure]:
    rows, tokens = min(config.reward_service.batch_sequences, config.rollout.chunk_sequences), longest_tokens(ppo)
    why = "" if ppo.reference == "service" else f'; reference = "{ppo.reference}", but evaluations measure KL'
    return [
        Figure(
            "reference_bytes",
            "the reference",
            size.weights_bytes if size else None,
            f"a frozen copy of the policy in {_trained(config.learner.dtype)}{why}",
        ),
        Figure(
            "logits_bytes",
            "its logits (estimate)",
            2 * rows * tokens * size.vocabulary * FLOAT_BYTES if size else None,
            f"about 2 tables of {rows} rows × {tokens} tokens × vocabulary of {size.vocabulary if size else '?'}",
        ),
    ]


def _classifier(name: str, what: str, parameters: int | None) -> Figure:
    if parameters is None:
        return Figure(name, what, None, "it is not on this machine")
    return Figure(name, what, parameters * FLOAT_BYTES, f"{parameters:,} parameters in float32")


def memory_of_learner(config: RunConfig, ppo: PPOConfig, size: PolicySize, passes: PassSize | None) -> Group:
    """The learner."""
    gradients = size.trained * size.value_bytes + size.trained_head_bytes
    weights, state = size.weights_bytes + size.head_bytes, optimizer_bytes(size)
    dtype, rows, tokens = _trained(config.learner.dtype), microbatch_rows(ppo), longest_tokens(ppo)
    muon = f", one for the {size.by_muon:,} of hidden matrices" if size.by_muon else ""
    together = rows_without_gradients(config, ppo)
    frozen = Figure(
        "frozen_bytes",
        "frozen layers",
        size.trained * size.value_bytes,
        "the trained layers as they were before PPO: the reference",
    )
    figures = [
        Figure("weights_bytes", "weights", weights, f"{size.parameters:,} parameters in {dtype}, and the value head"),
        Figure(
            "gradients_bytes",
            "gradients",
            gradients,
            f"one number for each of {size.trained:,} trained parameters"
            + (", and the value head's" if size.trains_head else ""),
        ),
        Figure(
            "optimizer_bytes",
            "optimizer state",
            state,
            f"{ppo.optimizer.type}: two numbers per trained parameter{muon}",
        ),
        *([frozen] if ppo.reference == "shared_trunk" else []),
        Figure(
            "activations_bytes",
            "activations (estimate)",
            passes.live_bytes if passes else None,
            f"what one pass over {counts(rows, 'sample')} of {tokens} tokens keeps for its gradients",
        ),
        Figure(
            "logits_bytes",
            "logits of passes without gradients (estimate)",
            3 * together * ppo.response_tokens.max * size.vocabulary * FLOAT_BYTES,
            f"about 3 tables of {together} × {ppo.response_tokens.max} response tokens × {size.vocabulary} words",
        ),
        Figure("publish_buffer_bytes", "published copy", publish_bytes(size), "the flat float32 buffer, as it is made"),
        Figure(
            "snapshot_bytes", "copy for a checkpoint", weights + state, "weights and optimizer state, as one is written"
        ),
    ]
    return _summed("memory_learner", "Memory of the learner", figures)


def _summed(name: str, title: str, figures: list[Figure]) -> Group:
    """With a sum, where there is one to be had."""
    values = [figure.value for figure in figures if isinstance(figure.value, int)]
    if values and len(values) == len(figures):
        because = "and some hundred megabytes of Python and torch"
        figures = [*figures, Figure("total_bytes", "in all, at most", sum(values), because)]
    return Group(name, title, figures)


def _served(dtype: DType) -> str:
    """The precision that is counted of weights that only answer."""
    return 'float32, counted for dtype = "auto" (half on a GPU with bfloat16)' if dtype == "auto" else dtype


def _trained(dtype: DType) -> str:
    """The precision of trained weights and of the reference, which `auto` leaves to no machine."""
    return 'float32 (dtype = "auto")' if dtype == "auto" else dtype
