"""Classifiers that score: what they are made of and how they are trained. Imports pydantic only."""

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from common.config_base import Config
from common.data_config import Weights, check_weights
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


class PolicyClassifier(Config):
    """The run's own policy after supervised fine-tuning, its output head replaced by a new one for the score.

    As in InstructGPT (arXiv:2203.02155, section 3.5); without [sft] the policy before it.
    """

    type: Literal["policy"] = "policy"
    """Tag of the union."""


Classifier = Annotated[
    PretrainedClassifier | BagOfNgrams | ConvClassifier | PolicyClassifier, Field(discriminator="type")
]


class LabelTraining(Config):
    """Cross-entropy over labelled texts."""

    type: Literal["labels"] = "labels"
    """Tag of the union; the one that is taken where none is given."""
    data: list[str] = Field(min_length=1)
    """Named, labelled data sources."""
    half: Literal["all", "a", "b"] = "all"
    """Which half of the training labels to learn from; `a` and `b` are disjoint, split by a hash of the document."""
    repeat: dict[str, Annotated[int, Field(ge=1)]] = {}
    """How often a data source's texts stand in one epoch, by name; once if not named."""
    weights: Weights = {}
    """How often each source is drawn from instead, by name, as `{ a = 3, b = 1 }`: each goes through epochs of its
    own, and `epochs` counts as many draws as there are texts in all."""
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
    def _repeats_what_is_there(self) -> "LabelTraining":
        _check_shares(self)
        return self


class PreferenceTraining(Config):
    """Bradley-Terry over pairs and rankings (InstructGPT, arXiv:2203.02155, eq. 1): the score is a single logit."""

    type: Literal["preferences"]
    """Tag of the union."""
    data: list[str] = Field(min_length=1)
    """Named data sources whose rows are `preferences` or `label_pairs`."""
    half: Literal["all", "a", "b"] = "all"
    """Which half of the training rankings to learn from; `a` and `b` are disjoint, split by a hash of the prompt and
    the texts, or, for label_pairs, of the document."""
    repeat: dict[str, Annotated[int, Field(ge=1)]] = {}
    """How often a data source's rankings stand in one epoch, by name; once if not named."""
    weights: Weights = {}
    """How often each source is drawn from instead, by name, as `{ a = 3, b = 1 }`: each goes through epochs of its
    own, and `epochs` counts as many draws as there are rankings in all."""
    epochs: int = Field(default=1, ge=1)
    """Passes over the rankings; more than one overfits large models (InstructGPT, appendix C.2)."""
    batch_rankings: int = Field(default=64, ge=1)
    """Rankings of one optimizer step: pairs, or K responses to one prompt; each counts once, whatever its K."""
    optimizer: Optimizer
    """Optimizer and learning rate; falls linearly to 0."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm; inf: never."""
    margin_coef: float = Field(default=1.0, ge=0)
    """The data's margins times this are what scores have to differ by (Llama 2, arXiv:2307.09288, eq. 2); 0: margins
    are not looked at."""
    centring_coef: float = Field(default=0.01, ge=0)
    """Weight of the squared sum of a pair's scores, which keeps the mean score near 0 (arXiv:2312.09244);
    differences alone leave it free."""

    @model_validator(mode="after")
    def _repeats_what_is_there(self) -> "PreferenceTraining":
        _check_shares(self)
        return self


def _check_shares(training: LabelTraining | PreferenceTraining) -> None:
    for name in training.repeat:
        if name not in training.data:
            raise ValueError(f"repeat names {name!r}, which is not in data: {', '.join(training.data)}")
    check_weights(training.data, training.weights)
    if training.weights and training.repeat:
        raise ValueError("weights and repeat both say how often a source counts; remove one")


ClassifierTraining = Annotated[LabelTraining | PreferenceTraining, Field(discriminator="type")]


class RewardModelConfig(Config):
    """A classifier whose positive-class logit is the score: more of it is better."""

    classifier: Classifier
    """Architecture."""
    training: ClassifierTraining | None = None
    """How to train it, on labels or on preferences; none: use it as it is (pretrained only)."""
    positive_class: int = Field(default=1, ge=0)
    """Index of the logit that is the score; 0, and by default so, where it learns from preferences, for which it has
    one logit only."""
    max_tokens: int = Field(default=256, ge=1)
    """Longer texts are cut, in the classifier's own tokens."""

    @model_validator(mode="before")
    @classmethod
    def _fill_in_what_follows(cls, data: Any) -> Any:
        """Training without a type is on labels; training on preferences leaves one logit, so that its index is 0."""
        training = data.get("training") if isinstance(data, dict) else None
        if isinstance(training, dict) and "type" not in training:
            data = {**data, "training": {"type": "labels", **training}}
        elif _learns_from_preferences(training) and "positive_class" not in data:
            data = {**data, "positive_class": 0}
        return data

    @model_validator(mode="after")
    def _one_logit_for_preferences(self) -> "RewardModelConfig":
        if _learns_from_preferences(self.training) and self.positive_class != 0:
            raise ValueError(
                f"positive_class={self.positive_class}, but training on preferences gives one logit, of index 0; "
                "leave positive_class out"
            )
        return self

    @model_validator(mode="after")
    def _fresh_ones_are_trained(self) -> "RewardModelConfig":
        if self.training is None and self.classifier.type != "pretrained":
            raise ValueError(f'classifier type "{self.classifier.type}" starts untrained; add a training table to it')
        return self


def _learns_from_preferences(training: Any) -> bool:
    """Whether a training table, checked already or not, is of the type `preferences`."""
    if isinstance(training, dict):
        return bool(training.get("type") == "preferences")
    return isinstance(training, PreferenceTraining)
