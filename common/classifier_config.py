"""Classifiers that score: what they are made of and how they are trained. Imports pydantic only."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from common.config_base import Config
from common.optimizer_config import Optimizer


class PretrainedClassifier(Config):
    """Any `AutoModelForSequenceClassification`, by name or folder."""

    type: Literal["pretrained"] = "pretrained"
    """Tag of the union."""
    path: str
    """Name on the hub or folder on disk."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""


class BagOfNgrams(Config):
    """A weight per word and word pair, started from naive-Bayes log-count ratios (NB-SVM; Wang & Manning 2012)."""

    type: Literal["bag"] = "bag"
    """Tag of the union."""
    vocabulary_size: int = Field(default=20_000, ge=16)
    """Most frequent words kept."""
    pair_buckets: int = Field(default=2**18, ge=1)
    """Word pairs are hashed into this many weights."""


class ConvClassifier(Config):
    """Word embeddings, one convolution, mean and max pooling (Kim 2014, arXiv:1408.5882), and a weight per word."""

    type: Literal["conv"] = "conv"
    """Tag of the union."""
    vocabulary_size: int = Field(default=20_000, ge=16)
    """Most frequent words kept."""
    embedding_size: int = Field(default=64, ge=1)
    """Width of a word."""
    num_filters: int = Field(default=128, ge=1)
    """Width of the convolution."""
    kernel_words: int = Field(default=3, ge=1)
    """Words that a filter sees."""
    dropout: float = Field(default=0.3, ge=0, lt=1)
    """Dropout in training, before the last layer."""


Classifier = Annotated[PretrainedClassifier | BagOfNgrams | ConvClassifier, Field(discriminator="type")]


class ClassifierTraining(Config):
    """Cross-entropy over labelled texts."""

    data: list[str] = Field(min_length=1)
    """Named, labelled data sources."""
    half: Literal["all", "a", "b"] = "all"
    """Which half of the training labels to learn from; `a` and `b` are disjoint, split by a hash of the document."""
    repeat: dict[str, Annotated[int, Field(ge=1)]] = {}
    """How often a data source's texts stand in one epoch, by name; once if not named."""
    epochs: int = Field(default=3, ge=1)
    """Passes over the texts."""
    batch_sequences: int = Field(default=256, ge=1)
    """Texts of one optimizer step."""
    optimizer: Optimizer
    """Optimizer and learning rate; falls linearly to 0."""
    naive_bayes_scale: float = Field(default=0.25, ge=0)
    """Weights of single words, and of pairs, start at this share of their naive-Bayes log-count ratios."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Share of the target spread over all classes: keeps logits on scale."""

    @model_validator(mode="after")
    def _repeats_what_is_there(self) -> "ClassifierTraining":
        for name in self.repeat:
            if name not in self.data:
                raise ValueError(f"repeat names {name!r}, which is not in data: {', '.join(self.data)}")
        return self


class RewardModelConfig(Config):
    """A classifier whose positive-class logit is the score: more of it is better."""

    classifier: Classifier
    """Architecture."""
    training: ClassifierTraining | None = None
    """How to train it; none: use it as it is (pretrained only)."""
    positive_class: int = Field(default=1, ge=0)
    """Index of the logit that is the score."""
    max_tokens: int = Field(default=256, ge=1)
    """Longer texts are cut, in the classifier's own tokens."""

    @model_validator(mode="after")
    def _fresh_ones_are_trained(self) -> "RewardModelConfig":
        if self.training is None and self.classifier.type != "pretrained":
            raise ValueError(f'classifier type "{self.classifier.type}" starts untrained; add a training table to it')
        return self
