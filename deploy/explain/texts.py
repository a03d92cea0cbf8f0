"""How many examples each stage learns from, and so how many steps it takes: known only once the data is read."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from common.classifier_config import LabelTraining, PreferenceTraining
from common.config import LanguageModelTraining, RunConfig
from common.corpus import Corpus, load_corpus, split
from common.errors import ConfigError, DataError
from common.gguf_file import find_gguf, gguf_tokenizer
from common.hub import join_revision
from common.preferences import load_preferences
from common.row_config import PreferenceRows
from common.splits import Half, Which
from common.text import load_tokenizer, train_word_tokenizer
from learner.examples import Loaded, encode_source, load_source, split_source
from learner.language_model import schedule_of
from learner.supervised import Schedule


@dataclass(frozen=True, slots=True)
class StageTexts:
    """What a supervised stage learns from."""

    texts: int
    """Texts, passages where they are joined, demonstrations, or rankings."""
    steps: int
    """Optimizer steps over them."""


@dataclass(frozen=True, slots=True)
class Texts:
    """What reading the data has told."""

    stages: Mapping[str, StageTexts]
    """By stage; those are absent whose data was not read."""
    vocabulary: int | None
    """Of the policy's tokenizer, where it is trained on data that was read."""
    lacks_tokenizer: bool
    """Whether texts were read, and the policy's tokenizer is not to be had."""
    splits: Mapping[str, tuple[int, int]]
    """Texts, demonstrations or rankings to train on and held out, by data source."""


class TextReader:
    """Reads data sources once each.

    Args:
        config: the run.
        everything: read files, packages and the hub too; else what is written in the configuration alone.
    """

    def __init__(self, config: RunConfig, *, everything: bool) -> None:
        self._config = config
        self._everything = everything
        self._loaded: dict[str, Loaded] = {}

    def read(self) -> Texts:
        """All that can be known.

        Raises:
            DataError: a source is not as it should be.
        """
        stages: dict[str, StageTexts | None] = {}
        tables = (self._config.pretrain, self._config.sft)
        for stage, table in zip(("pretrain", "sft"), tables, strict=True):
            stages[stage] = self._language_model(table)
        for stage in ("reward_model", "judge"):
            classifier = getattr(self._config, stage)
            stages[stage] = self._classifier(None if classifier is None else classifier.training)
        used = dict.fromkeys(name for names in self._config.data_used().values() for name in names)
        return Texts(
            {stage: known for stage, known in stages.items() if known is not None},
            len(self._tokenizer) if self._config.model.type == "fresh" and self._tokenizer is not None else None,
            any(table is not None and self._may_read(table.data) for table in tables) and self._tokenizer is None,
            {name: (self._size(name, "train"), self._size(name, "heldout")) for name in used if self._may_read([name])},
        )

    def _language_model(self, table: LanguageModelTraining | None) -> StageTexts | None:
        if table is None or not self._may_read(table.data) or self._tokenizer is None:
            return None
        parts = [encode_source(name, self._split(name, "train"), self._tokenizer, table) for name in table.data]
        number = sum(len(part) for part in parts)
        return StageTexts(number, schedule_of(table, number).steps) if number else None

    def _classifier(self, training: LabelTraining | PreferenceTraining | None) -> StageTexts | None:
        if training is None or not self._may_read(training.data):
            return None
        if isinstance(training, LabelTraining):
            number = sum(self._labelled(name, training.half) * training.repeat.get(name, 1) for name in training.data)
            return StageTexts(number, Schedule.falling(training.epochs, number, training.batch_sequences).steps)
        number = sum(self._ranked(name, training.half) * training.repeat.get(name, 1) for name in training.data)
        return StageTexts(number, Schedule.falling(training.epochs, number, training.batch_rankings).steps)

    def _may_read(self, names: list[str]) -> bool:
        return self._everything or all(self._config.data[name].type == "inline" for name in names)

    def _load(self, name: str) -> Loaded:
        if name not in self._loaded:
            self._loaded[name] = load_source(self._config.data[name])
        return self._loaded[name]

    def _split(self, name: str, which: Which) -> Loaded:
        return split_source(self._load(name), self._config.heldout_fraction, which)

    def _labelled(self, name: str, half: Half) -> int:
        return len(split(load_corpus(self._config.data[name]), self._config.heldout_fraction, "train", half))

    def _ranked(self, name: str, half: Half = "all", which: Which = "train") -> int:
        source = self._config.data[name]
        return len(load_preferences(source, self._config.heldout_fraction, which, half).rankings)

    def _size(self, name: str, which: Which) -> int:
        """Rankings where the rows are rankings; texts or demonstrations else, also of labels that give pairs."""
        if isinstance(self._config.data[name].rows, PreferenceRows):
            return self._ranked(name, which=which)
        return len(self._split(name, which))

    @functools.cached_property
    def _tokenizer(self) -> PreTrainedTokenizerBase | None:
        """Of the policy; None where it cannot be had."""
        model = self._config.model
        if model.type == "pretrained":
            try:
                return load_tokenizer(join_revision(model.path, model.revision))
            except ConfigError:
                return None
        table = self._config.pretrain
        if model.type == "gguf":
            try:
                return gguf_tokenizer(find_gguf(model))
            except (ConfigError, DataError):
                return None
        if table is None or not self._may_read(table.data):
            return None
        parts = [self._split(name, "train") for name in table.data]
        texts = [text for part in parts if isinstance(part, Corpus) for text in part.texts]
        return train_word_tokenizer(texts, vocabulary_size=model.vocabulary_size, max_tokens=model.max_tokens)
