"""What a configuration amounts to: a figure, and the sentence from which it follows. Arithmetic; nothing is loaded.

`Figure` and `Group` are what `minichatgpt config explain` shows. Counts of PPO are here, bytes are in
`explain/sizes.py` and `explain/memory.py`; all take a configuration and sizes, never a model.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from common.config import RunConfig
from common.evaluate_config import EvaluateConfig
from common.ppo_config import PPOConfig
from deploy.explain.counts import (
    chunks_of_busiest,
    chunks_per_update,
    evaluations_in_training,
    longest_tokens,
    microbatch_rows,
    responses_after,
    steps_per_update,
    tokens_per_pass,
)
from deploy.preflight.finding import show_bytes


@dataclass(frozen=True, slots=True)
class Figure:
    """One derived number."""

    name: str
    """Its key in `--json`; the unit is in it."""
    what: str
    """In plain words."""
    value: int | float | str | None
    """None: it cannot be known here; `because` says why."""
    because: str
    """What it follows from."""

    @property
    def shown(self) -> str:
        """For people: bytes in units of 1000, thousands apart."""
        match self.value:
            case None:
                return "?"
            case str():
                return self.value
            case _ if "bytes" in self.name:
                return show_bytes(self.value)
            case int():
                return f"{self.value:,}"
            case _:
                return f"{self.value:,.6g}"


@dataclass(frozen=True, slots=True)
class Group:
    """Figures that are read together."""

    name: str
    """Its key in `--json`."""
    title: str
    figures: Sequence[Figure]


def counts(value: int, singular: str, plural: str = "") -> str:
    """`1 chunk`, `2 chunks`."""
    return f"{value:,} {singular if value == 1 else plural or f'{singular}s'}"


def sampling(config: RunConfig, ppo: PPOConfig) -> Group:
    """What is generated and judged."""
    n = ppo.trajectories_per_update
    tokens = n * ppo.response_tokens.max
    figures = [
        Figure("updates", "updates", ppo.updates, "ppo.updates"),
        Figure("trajectories", "trajectories in all", ppo.updates * n, f"{ppo.updates:,} updates × {n:,}"),
        Figure(
            "prompts_per_update",
            "prompts per update",
            n // ppo.samples_per_prompt,
            f"{n:,} trajectories ÷ {counts(ppo.samples_per_prompt, 'sample')} per prompt",
        ),
        *dispatching(config, ppo),
        Figure(
            "response_tokens_per_update",
            "most tokens generated per update",
            tokens,
            f"{n:,} responses × {ppo.response_tokens.max} (ppo.response_tokens.max); those that end by EOS are shorter",
        ),
        Figure(
            "response_tokens",
            "most tokens generated in all",
            ppo.updates * tokens,
            f"{ppo.updates:,} updates × {tokens:,}",
        ),
        *judging(config, ppo),
    ]
    return Group("sampling", "PPO: what is sampled and judged", figures)


def dispatching(config: RunConfig, ppo: PPOConfig) -> list[Figure]:
    """How an update's samples are dealt out to workers."""
    n, size, workers = ppo.trajectories_per_update, config.rollout.chunk_sequences, config.rollout.workers
    chunks, per_worker = chunks_per_update(config, ppo), chunks_of_busiest(config, ppo)
    filler = chunks * size - n
    return [
        Figure(
            "chunks_per_update",
            "chunks per update",
            chunks,
            f"{n:,} trajectories ÷ {size} per chunk, rounded up"
            + (f"; {filler} rows of the last one are filled up and thrown away" if filler else ""),
        ),
        Figure(
            "chunks_per_worker",
            "chunks per worker and update",
            per_worker,
            f"{counts(chunks, 'chunk')} over {counts(workers, 'worker')}, if all are equally fast"
            + (f"; {counts(workers - chunks, 'worker')} always idle" if workers > chunks else ""),
        ),
        Figure(
            "sequences_per_worker",
            "sequences per worker and update",
            per_worker * size,
            f"{counts(per_worker, 'chunk')} × {size}, filled-up rows included",
        ),
    ]


def judging(config: RunConfig, ppo: PPOConfig) -> list[Figure]:
    """Texts that the reward service reads: for one update, and for evaluations in all."""
    n, service = ppo.trajectories_per_update, config.reward_service
    with_prompt = service.has_model and ppo.score_baseline == "prompt"
    passes = chunks_per_update(config, ppo) * -(-config.rollout.chunk_sequences // service.batch_sequences)
    by_service = ppo.reference == "service"
    why = {
        "service": f"each once, over {counts(service.replicas, 'replica')}: {counts(passes, 'pass', 'passes')}",
        "shared_trunk": 'none: reference = "shared_trunk", so that the learner computes it',
        "none": 'none: reference = "none"',
    }
    return [
        Figure(
            "texts_scored_per_update",
            "texts scored per update",
            n * (1 + with_prompt),
            f"{n:,} responses"
            + (', and their prompts by the reward model: score_baseline = "prompt"' if with_prompt else ""),
        ),
        Figure(
            "reference_sequences_per_update",
            "sequences read by the reward service's reference per update",
            n if by_service else 0,
            why[ppo.reference],
        ),
        *([] if config.evaluate is None else [evaluated(ppo, config.evaluate)]),
    ]


def evaluated(ppo: PPOConfig, evaluate: EvaluateConfig) -> Figure:
    """Responses that the reward service judges for evaluations, on top of those of updates."""
    after, times = responses_after(evaluate), evaluations_in_training(ppo, evaluate)
    within = f", and {counts(times, 'evaluation')} × {evaluate.num_in_training:,} while PPO learns" if times else ""
    return Figure(
        "evaluation_sequences",
        "sequences read for evaluations in all",
        after + times * evaluate.num_in_training,
        f"each by scorers, judge and reference: {after:,} after PPO{within}",
    )


def optimizing(ppo: PPOConfig) -> Group:
    """What the learner does with an update's samples."""
    n, size = ppo.trajectories_per_update, ppo.minibatch_sequences
    minibatches, steps = n // size, steps_per_update(ppo)
    before = 1 + (ppo.reference == "shared_trunk")
    figures = [
        Figure("minibatches_per_epoch", "minibatches per epoch", minibatches, f"{n:,} trajectories ÷ {size}"),
        Figure(
            "steps_per_update",
            "optimizer steps per update",
            steps,
            f"{n:,} trajectories ÷ {size} = {counts(minibatches, 'step')} × {counts(ppo.epochs, 'epoch')}",
        ),
        Figure("steps", "optimizer steps in all", ppo.updates * steps, f"{ppo.updates:,} updates × {steps:,}"),
        Figure("sequences_per_step", "sequences per optimizer step", size, "ppo.minibatch_sequences"),
        *passes(ppo),
        Figure(
            "trained_tokens_per_update",
            "most response tokens trained on per update",
            ppo.epochs * n * ppo.response_tokens.max,
            f"{counts(ppo.epochs, 'epoch')} × {n:,} responses × {ppo.response_tokens.max}",
        ),
        Figure(
            "learner_forwards_per_sequence",
            "passes over each sequence in the learner, per update",
            before + ppo.epochs,
            "one for the old logprobs and values"
            + (", one more with the frozen layers for the reference" if before == 2 else "")
            + f", and {ppo.epochs} with gradients",
        ),
        *schedule(ppo),
    ]
    return Group("optimizing", "PPO: what is optimized", figures)


def passes(ppo: PPOConfig) -> list[Figure]:
    """How an optimizer step is cut."""
    size, rows, longest = ppo.minibatch_sequences, microbatch_rows(ppo), longest_tokens(ppo)
    sample = f"prompt of {ppo.prompt_tokens.max} and response of {ppo.response_tokens.max}"
    if ppo.microbatch_tokens is None:
        cut = f"{counts(size, 'sequence')} ÷ {rows} (ppo.microbatch_sequences); gradients add up"
        most = f"{counts(rows, 'row')} × {longest} tokens: {sample}, padding included"
    else:
        cut = f"at most: {rows} of the longest samples ({sample}) fit, and more of shorter ones; gradients add up"
        most = "ppo.microbatch_tokens, padding included, or the whole minibatch"
    return [
        Figure("passes_per_step", "forward and backward passes per optimizer step", -(-size // rows), cut),
        Figure("tokens_per_pass", "most tokens of one pass", tokens_per_pass(ppo), most),
    ]


def schedule(ppo: PPOConfig) -> list[Figure]:
    """How often an update is looked at or kept."""
    every = ppo.checkpoint_every
    saves = {*range(every, ppo.updates + 1, every), ppo.updates} if every else {ppo.updates}
    return [
        Figure(
            "policy_updates",
            "updates that change the policy",
            ppo.updates - ppo.value_warmup_updates,
            f"in the first {ppo.value_warmup_updates} of {ppo.updates:,} only the value head learns"
            if ppo.value_warmup_updates
            else "all of them: ppo.value_warmup_updates is 0",
        ),
        Figure(
            "checkpoints_written",
            "checkpoints written",
            len(saves),
            (f"every {counts(every, 'update')} and after the last" if every else "after the last update only")
            + f"; the {ppo.keep_last} newest and the {ppo.keep_best} best are kept",
        ),
    ]


def evaluation(ppo: PPOConfig, evaluate: EvaluateConfig) -> Group:
    """What is answered on held-out prompts."""
    every, times = evaluate.every_updates, evaluations_in_training(ppo, evaluate)
    others = f", and by {counts(len(evaluate.against), 'other')}" if evaluate.against else ""
    figures = [
        Figure(
            "responses",
            "responses after PPO",
            responses_after(evaluate),
            f"{counts(evaluate.prompts, 'held-out prompt')}, by the policy before and after PPO{others}",
        ),
        Figure(
            "evaluations_in_training",
            "evaluations while PPO learns",
            times,
            f"one before the first update, then every {counts(every, 'update')}"
            if every
            else "evaluate.every_updates is 0",
        ),
        Figure(
            "responses_in_training",
            "responses while PPO learns",
            times * evaluate.num_in_training,
            f"{counts(times, 'evaluation')} × {counts(evaluate.num_in_training, 'held-out prompt')}",
        ),
    ]
    return Group("evaluation", "Evaluation", figures)
