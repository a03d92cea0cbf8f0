"""How many texts each stage learns from, and so how many steps it takes: known only once the data is read."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from common.classifier_config import ClassifierTraining
from common.config import LanguageModelTraining, RunConfig
from common.corpus import Corpus, load_corpus, split
from common.errors import ConfigError
from common.hub import join_revision
from common.text import load_tokenizer, train_word_tokenizer
from learner.language_model import documents_of
from learner.language_model import schedule_of as language_model_schedule
from learner.reward_model import schedule_of as classifier_schedule


@dataclass(frozen=True, slots=True)
class StageTexts:
    """What a supervised stage learns from."""

    texts: int
    """Texts, or passages where they are joined."""
    steps: int
    """Optimizer steps over them."""


@dataclass(frozen=True, slots=True)
class Texts:
    """What reading the data has told."""

    stages: Mapping[str, StageTexts]
    """By stage; those are absent whose data was not read."""
    vocabulary: int | None
    """Of the policy's tokenizer, where it is trained on data that was read."""
    splits: Mapping[str, tuple[int, int]]
    """Training and held-out texts by data source."""


class TextReader:
    """Reads data sources once each.

    Args:
        config: the run.
        everything: read files and packages too; else what is written in the configuration alone.
    """

    def __init__(self, config: RunConfig, *, everything: bool) -> None:
        self._config = config
        self._everything = everything
        self._corpora: dict[str, Corpus] = {}

    def read(self) -> Texts:
        """All that can be known.

        Raises:
            DataError: a source is not as it should be.
        """
        stages = {}
        for stage in ("pretrain", "sft"):
            table: LanguageModelTraining | None = getattr(self._config, stage)
            if table is not None and self._may_read(table.data) and self._tokenizer is not None:
                documents = documents_of(self._learned(table.data), self._tokenizer, table)
                stages[stage] = StageTexts(len(documents), language_model_schedule(table, len(documents)).steps)
        for stage in ("reward_model", "judge"):
            classifier = getattr(self._config, stage)
            training = None if classifier is None else classifier.training
            if training is not None and self._may_read(training.data):
                number = self._labelled(training)
                stages[stage] = StageTexts(number, classifier_schedule(training, number).steps)
        fresh = self._config.model.type == "fresh" and self._tokenizer is not None
        used = dict.fromkeys(name for names in self._config.data_used().values() for name in names)
        splits = {name: self._split(name) for name in used if self._may_read([name])}
        return Texts(stages, len(self._tokenizer) if fresh and self._tokenizer else None, splits)

    def _may_read(self, names: list[str]) -> bool:
        return self._everything or all(self._config.data[name].type == "inline" for name in names)

    def _corpus(self, name: str) -> Corpus:
        if name not in self._corpora:
            self._corpora[name] = load_corpus(self._config.data[name])
        return self._corpora[name]

    def _learned(self, names: list[str]) -> dict[str, Corpus]:
        return {name: split(self._corpus(name), self._config.heldout_fraction, "train") for name in names}

    def _split(self, name: str) -> tuple[int, int]:
        learned = len(split(self._corpus(name), self._config.heldout_fraction, "train"))
        return learned, len(self._corpus(name)) - learned

    def _labelled(self, training: ClassifierTraining) -> int:
        fraction = self._config.heldout_fraction
        return sum(
            len(split(self._corpus(name), fraction, "train", training.half)) * training.repeat.get(name, 1)
            for name in training.data
        )

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
        if table is None or not self._may_read(table.data):
            return None
        texts = [text for corpus in self._learned(table.data).values() for text in corpus.texts]
        return train_word_tokenizer(texts, vocabulary_size=model.vocabulary_size, max_tokens=model.max_tokens)
