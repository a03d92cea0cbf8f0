"""`minichatgpt config explain`: every number that follows from a configuration, in the order of a run.

configuration ─┬─▶ texts (explain/texts.py) ──┐
               ├─▶ shapes (explain/model.py) ─┼─▶ groups of figures (explain/figures.py, _sizes.py, _memory.py)
               └──────────────────────────────┘

Called by `deploy/config_cli.py`.
"""

from collections.abc import Sequence

from transformers import PretrainedConfig

from common.classifier_config import LabelTraining, PreferenceTraining, RewardModelConfig
from common.config import LanguageModelTraining, RunConfig
from common.errors import ConfigError, DataError
from common.ppo_config import PPOConfig
from deploy.explain.figures import Figure, Group, counts, evaluation, optimizing, sampling
from deploy.explain.memory import memory_of_learner, memory_of_replicas, memory_of_worker
from deploy.explain.model import classifier_parameters, pass_size, policy_size
from deploy.explain.sizes import disk, models_bytes, traffic
from deploy.explain.texts import StageTexts, TextReader, Texts
from deploy.preflight.models import policy_shape

_UNREAD = "it is known once the data is read (--read)"
_NO_TOKENIZER = "it is known once the policy's tokenizer is here"


def explain(config: RunConfig, *, read: bool) -> list[Group]:
    """All that can be known of a run before it starts.

    Args:
        config: the run.
        read: read the data, which gives the numbers of texts and the vocabulary of a fresh model; what is written in
            the configuration is read in any case.

    Raises:
        DataError: data that is read is not as it should be.
    """
    texts = TextReader(config, everything=read).read()
    shape, missing = _shape(config, texts)
    groups = [_data(config, texts), _model(config, shape, texts) if shape else _no_model(missing)]
    groups += [_language_model(config, stage, texts) for stage in ("pretrain", "sft") if getattr(config, stage)]
    for stage in ("reward_model", "judge"):
        table = getattr(config, stage)
        if table is not None and table.training is not None:
            groups.append(_classifier(stage, table.training, texts.stages.get(stage)))
    if config.ppo is not None:
        groups += _ppo(config, config.ppo, shape)
    elif shape is not None:
        groups.append(Group("disk", "Disk", [models_bytes(config, policy_size(shape, config))]))
    if config.ppo is not None and config.evaluate is not None:
        groups.append(evaluation(config.ppo, config.evaluate))
    return groups


def _ppo(config: RunConfig, ppo: PPOConfig, shape: PretrainedConfig | None) -> list[Group]:
    groups = [sampling(config, ppo), optimizing(ppo)]
    classifiers = {"reward_model": _parameters(config.reward_model, shape), "judge": _parameters(config.judge, shape)}
    if shape is None:
        return [*groups, *memory_of_replicas(config, ppo, None, classifiers)]
    size, passes = policy_size(shape, config), pass_size(shape, config)
    return [
        *groups,
        memory_of_worker(config, ppo, size, passes),
        *memory_of_replicas(config, ppo, size, classifiers),
        memory_of_learner(config, ppo, size, passes),
        traffic(config, size),
        disk(config, ppo, size),
    ]


def _shape(config: RunConfig, texts: Texts) -> tuple[PretrainedConfig | None, str]:
    """Of the policy; None where it is not on this machine, and why."""
    try:
        shape = policy_shape(config)
    except (ConfigError, DataError) as error:  # DataError: the package of a GGUF file
        if config.model.type == "pretrained":
            return None, f"{config.model.path} is not on this machine, and nothing is downloaded here"
        return None, str(error)
    if texts.vocabulary is not None:
        shape.vocab_size = texts.vocabulary
    return shape, ""


def _parameters(table: RewardModelConfig | None, shape: PretrainedConfig | None) -> int | None:
    """Of the reward model or the judge; None where it is not to be had."""
    if table is None:
        return None
    try:
        return classifier_parameters(table, shape)
    except ConfigError:
        return None


def _data(config: RunConfig, texts: Texts) -> Group:
    """What is held out, and for what."""
    share = config.heldout_fraction
    figures = [
        Figure(
            "heldout_fraction",
            "share of the documents that is held out",
            share,
            "heldout_fraction: no stage trains on them; which, follows from a hash of each document",
        )
    ]
    for name in dict.fromkeys(name for names in config.data_used().values() for name in names):
        learned, heldout = texts.splits.get(name, (None, None))
        why = "by the hash of their documents" if name in texts.splits else _UNREAD
        figures += [
            Figure(f"{name}_train", f"examples of {name} to train on", learned, why),
            Figure(f"{name}_heldout", f"examples of {name} that are held out", heldout, why),
        ]
    return Group("data", "Data", figures)


def _no_model(because: str) -> Group:
    return Group("model", "Policy", [Figure("parameters", "parameters", None, because)])


def _model(config: RunConfig, shape: PretrainedConfig, texts: Texts) -> Group:
    size, is_bound = policy_size(shape, config), config.model.type == "fresh" and texts.vocabulary is None
    source = "model.vocabulary_size; the data may hold fewer words" if is_bound else "rows of the embedding"
    at_most = f"; at most, for {_UNREAD}" if is_bound else ""
    figures = [
        Figure("parameters", "parameters", size.parameters, f"of a {config.model.type} model of this shape{at_most}"),
        Figure("vocabulary", "vocabulary", size.vocabulary, source),
        Figure("layers", "decoder layers", size.layers, "of the model"),
    ]
    if config.ppo is not None:
        top = config.ppo.trainable_layers
        what = "everything" if top is None else f"the top {counts(top, 'layer')} and the final norm"
        figures += [
            Figure("trained_parameters", "parameters that PPO trains", size.trained, f"{what} (ppo.trainable_layers)"),
            Figure(
                "value_head_parameters",
                "parameters of the value head",
                size.head,
                f"width of {size.width:,} + 1"
                + (", and a network of its own (ppo.value_network)" if size.value_trunk else ""),
            ),
        ]
    return Group("model", "Policy", figures)


def _language_model(config: RunConfig, stage: str, texts: Texts) -> Group:
    table: LanguageModelTraining = getattr(config, stage)
    known = texts.stages.get(stage)
    unit = "texts" if table.join == "none" else "passages"
    batch = min(table.batch_sequences, known.texts) if known else table.batch_sequences
    because = f"{_number(known)} {unit} ÷ {batch} × {table.epochs:g} epochs, rounded"
    figures = [
        *_steps(known, unit, batch, table.epochs, because, _NO_TOKENIZER if texts.lacks_tokenizer else _UNREAD),
        Figure(
            "tokens_per_step",
            "most tokens of one step",
            batch * table.max_tokens,
            f"{batch} {unit} × {table.max_tokens} ({stage}.max_tokens)",
        ),
    ]
    return Group(stage, {"pretrain": "Pre-training", "sft": "Supervised fine-tuning"}[stage], figures)


def _classifier(stage: str, training: LabelTraining | PreferenceTraining, known: StageTexts | None) -> Group:
    if isinstance(training, LabelTraining):
        unit, batch = "texts", training.batch_sequences
    else:
        unit, batch = "rankings", training.batch_rankings
    batch = min(batch, known.texts) if known else batch
    because = f"{_number(known)} {unit} ÷ {batch}, rounded down, × {counts(training.epochs, 'epoch')}"
    title = {"reward_model": "Reward model", "judge": "Judge"}[stage]
    return Group(stage, title, _steps(known, unit, batch, training.epochs, because))


def _steps(
    known: StageTexts | None, unit: str, batch: int, epochs: float, because: str, unknown: str = _UNREAD
) -> Sequence[Figure]:
    why = "of the training split" if known else unknown
    return [
        Figure("texts", f"{unit} to learn from", known.texts if known else None, why),
        Figure("epochs", "passes over them", epochs, "epochs"),
        Figure("texts_per_step", f"{unit} of one step", batch, "of one batch, or all where there are fewer"),
        Figure("steps", "optimizer steps", known.steps if known else None, because),
    ]


def _number(known: StageTexts | None) -> str:
    return f"{known.texts:,}" if known else "?"
