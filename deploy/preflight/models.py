"""Whether the data and the pre-trained models of a run are there and fit each other; no weights, no tables are read."""

import functools
import glob
from collections.abc import Callable, Iterator
from pathlib import Path

from transformers import AutoConfig, PretrainedConfig, PreTrainedTokenizerBase

from actors.build import check_length
from common.classifier_config import PretrainedClassifier, RewardModelConfig
from common.classifiers import register_classifiers
from common.config import RunConfig
from common.data_config import DataSource, FilesSource, HubSource, InlineSource
from common.errors import ConfigError, DataError
from common.gguf_file import find_gguf, gguf_shape
from common.hub import join_revision, loading
from common.hub_tables import check_hub_columns, hub_name, hub_version
from common.model_config import GgufModel, PretrainedModel
from common.modeling import fresh_shape
from common.source_tables import source_paths
from common.table_files import check_columns
from common.text import load_classifier_tokenizer, load_tokenizer
from deploy.evaluation.rivals import rival_path
from deploy.preflight.finding import Finding, show_bytes

WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "pytorch_model*.bin", "pytorch_model.bin.index.json")
"""What a folder with the weights of a model holds at least one of."""


def used_data(config: RunConfig) -> dict[str, DataSource]:
    """The data sources that some stage reads, by name."""
    names = dict.fromkeys(name for used in config.data_used().values() for name in used)
    return {name: config.data[name] for name in names}


def input_paths(config: RunConfig) -> tuple[str, ...]:
    """Paths and patterns on disk that other processes of the run read too, as the configuration has them."""
    sources = used_data(config).values()
    files = [path for source in sources if isinstance(source, FilesSource) for path in source.paths]
    files += [source.path for source in sources if isinstance(source, HubSource)]
    tables = [table for table in (config.reward_model, config.judge) if table is not None]
    named = (config.model, *(table.classifier for table in tables))
    folders = [m.path for m in named if isinstance(m, PretrainedModel | PretrainedClassifier) and Path(m.path).is_dir()]
    there = [path for path in files if Path(path).exists() or glob.glob(path, recursive=True)]
    if isinstance(config.model, GgufModel) and config.model.path is not None and Path(config.model.path).is_file():
        folders.append(config.model.path)
    return tuple(dict.fromkeys(there + folders))


def check_data(config: RunConfig) -> list[Finding]:
    """Each data source is there and has the columns that are read."""
    return [_check(f"data.{name}", functools.partial(_source, source)) for name, source in used_data(config).items()]


def policy_shape(config: RunConfig) -> PretrainedConfig:
    """The shape of the policy; that of a fresh one has its largest possible vocabulary.

    Raises:
        ConfigError: a pre-trained one cannot be had.
    """
    if isinstance(config.model, PretrainedModel):
        return load_shape(join_revision(config.model.path, config.model.revision))
    if isinstance(config.model, GgufModel):
        return gguf_shape(find_gguf(config.model))
    return fresh_shape(config.model, vocab_size=config.model.vocabulary_size)


def check_models(config: RunConfig) -> list[Finding]:
    """Pre-trained models load, their tokenizers know no id that they lack, and the longest texts fit; fresh ones do."""
    found = []
    model = config.model
    if isinstance(model, PretrainedModel):
        found.append(_check("model", functools.partial(_policy, config, join_revision(model.path, model.revision))))
    if isinstance(model, GgufModel):
        found.append(_check("model", functools.partial(_gguf, config, model)))
    for role in ("reward_model", "judge"):
        table: RewardModelConfig | None = getattr(config, role)
        if table is not None and isinstance(table.classifier, PretrainedClassifier):
            found.append(_check(role, functools.partial(_classifier, role, table)))
    return found


def check_rivals(config: RunConfig, runs: Path) -> list[Finding]:
    """The models of `evaluate.against` are there, and their tokenizers load.

    Args:
        config: the run.
        runs: where the runs are.
    """
    named = config.evaluate.against if config.evaluate is not None else []
    return [_check("evaluate.against", functools.partial(_rival, name, runs)) for name in named]


def _rival(name: str, runs: Path) -> str:
    path = rival_path(name, runs)
    return f"{name}: {path}, {len(load_tokenizer(path))} tokens known"


def _check(name: str, look: Callable[[], str]) -> Finding:
    try:
        return Finding(name, look())
    except (ConfigError, DataError) as error:
        return Finding(name, failure=f"{name}: {error}")


def _source(source: DataSource) -> str:
    if isinstance(source, InlineSource):
        return f"{len(source.texts)} inline texts" if source.texts else f"{len(source.records)} inline records"
    if isinstance(source, HubSource):
        check_hub_columns(source, source.column_names())
        return f"{hub_name(source)}, version {hub_version(source)[:12]}, with {', '.join(source.column_names())}"
    paths = source_paths(source)
    for path in paths:
        check_columns(path, source.column_names())
    size = show_bytes(sum(path.stat().st_size for path in paths))
    return f"{len(paths)} file{'s' * (len(paths) > 1)} of {size}, with {', '.join(source.column_names())}"


def load_shape(path: str) -> PretrainedConfig:
    """The shape of a model, by name or folder; raises ConfigError if it cannot be had."""
    register_classifiers()
    try:
        with loading(path) as (name, revision):
            return AutoConfig.from_pretrained(name, revision=revision)
    except ValueError as error:
        if isinstance(error, ConfigError):
            raise
        first = str(error).strip().splitlines()[0][:300]
        raise ConfigError(f"{path} is no model that transformers knows: {first}; choose another") from error


def _policy(config: RunConfig, path: str) -> str:
    shape = policy_shape(config)
    tokenizer = load_tokenizer(path)
    text = shape.get_text_config()
    _check_weights(path)
    _check_vocabulary(path, tokenizer, text.vocab_size)
    _check_fit(config, path, text)
    known = f"{len(tokenizer)} tokens known, embedding of {text.vocab_size}"
    return f"{path}: {shape.model_type}, {known}, {_positions(text)} positions"


def _gguf(config: RunConfig, model: GgufModel) -> str:
    """The tokenizer is of the same file, and not read here."""
    path = find_gguf(model)
    shape = gguf_shape(path)
    text = shape.get_text_config()
    _check_fit(config, str(path), text)
    size = show_bytes(path.stat().st_size)
    return f"{path}: {shape.model_type}, {size}, {text.vocab_size} tokens, {_positions(text)} positions"


def _check_fit(config: RunConfig, path: str, text: PretrainedConfig) -> None:
    """The longest texts and the number of trained layers fit the model."""
    limit = _positions(text)
    if limit is not None and config.ppo is not None:
        check_length(config, limit)
    if limit is not None and config.sft is not None and config.sft.max_tokens > limit:
        raise ConfigError(
            f"sft.max_tokens={config.sft.max_tokens} does not fit the {limit} positions of {path}; set it to {limit} "
            "or less"
        )
    for role in ("reward_model", "judge"):
        table: RewardModelConfig | None = getattr(config, role)
        if limit is not None and table is not None and table.classifier.type == "policy" and table.max_tokens > limit:
            raise ConfigError(
                f"{role}.max_tokens={table.max_tokens} does not fit the {limit} positions of {path}, from which it "
                f"starts; set it to {limit} or less"
            )
    layers = None if config.ppo is None else config.ppo.trainable_layers
    if layers is not None and layers > text.num_hidden_layers:
        raise ConfigError(
            f"ppo.trainable_layers={layers} exceeds the {text.num_hidden_layers} layers of {path}; lower it"
        )


def _classifier(role: str, table: RewardModelConfig) -> str:
    assert isinstance(table.classifier, PretrainedClassifier), "others are trained by the run"
    path = join_revision(table.classifier.path, table.classifier.revision)
    shape = load_shape(path)
    tokenizer = load_classifier_tokenizer(path)
    _check_weights(path)
    _check_vocabulary(path, tokenizer, shape.get_text_config().vocab_size)
    if table.training is None and table.positive_class >= shape.num_labels:
        raise ConfigError(
            f"{role}.positive_class={table.positive_class}, but {path} tells {shape.num_labels} classes apart; "
            f"legal are 0 to {shape.num_labels - 1}"
        )
    limits = [limit for limit in (_positions(shape.get_text_config()), tokenizer.model_max_length) if limit is not None]
    if table.max_tokens > min(limits):
        raise ConfigError(
            f"{role}.max_tokens={table.max_tokens} does not fit the {min(limits)} positions of {path}; set it to "
            f"{min(limits)} or less"
        )
    return f"{path}: {shape.model_type}, {len(tokenizer)} tokens known, {shape.num_labels} classes"


def _positions(shape: PretrainedConfig) -> int | None:
    """Longest sequence; None for architectures that have no such limit, whose configuration lacks the attribute."""
    limit: int | None = getattr(shape, "max_position_embeddings", None)
    return limit


def _check_vocabulary(path: str, tokenizer: PreTrainedTokenizerBase, vocabulary_size: int) -> None:
    highest = max(tokenizer.get_vocab().values())
    if highest >= vocabulary_size:
        raise ConfigError(
            f"the tokenizer of {path} knows ids up to {highest}, but the model's embedding has {vocabulary_size} rows: "
            "they are not of one model; put the tokenizer there that the model was trained with"
        )


def _check_weights(path: str) -> None:
    """A folder on disk holds weights; of the hub nobody is asked here."""
    folder = Path(path)
    if folder.is_dir() and not any(_files(folder)):
        raise ConfigError(f"{folder} holds no weights (none of {', '.join(WEIGHTS)}); is the copy complete?")


def _files(folder: Path) -> Iterator[Path]:
    for pattern in WEIGHTS:
        yield from folder.glob(pattern)
