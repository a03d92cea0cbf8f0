"""Small text classifiers of our own, in Hugging Face's format: two logits, the positive one is the score, or one.

Both read the ids of a word-level tokenizer. Padding (anything with attention_mask 0) changes nothing.

Legend: B texts, T words, C classes, D width of a word.
"""

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.modeling_outputs import SequenceClassifierOutput

from common.hub import loading
from common.modeling import without_dropout


class BagConfig(PretrainedConfig):  # type: ignore[misc]
    """Shape of a BagClassifier."""

    model_type = "minichatgpt-bag"

    def __init__(self, vocab_size: int = 16, pair_buckets: int = 1, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.vocab_size = vocab_size
        self.pair_buckets = pair_buckets


class BagClassifier(PreTrainedModel):  # type: ignore[misc]
    """A weight per word and per hashed word pair; their sum is the log-odds (Wang & Manning 2012, NB-SVM)."""

    config_class = BagConfig

    def __init__(self, config: BagConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, 1)
        self.pairs = nn.Embedding(config.pair_buckets, 1)
        self.bias = nn.Parameter(torch.zeros(()))
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding):
            nn.init.zeros_(module.weight)

    def pair_ids(self, input_ids: Tensor) -> Tensor:
        """[B, T] ids to [B, T-1] buckets of adjacent pairs."""
        mixed = input_ids[:, :-1] * 1_000_003 + input_ids[:, 1:] * 7_919
        buckets: Tensor = mixed % self.config.pair_buckets
        return buckets

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Two logits, -z/2 and z/2, of the log-odds z; or z alone, [B, 1], where num_labels is 1.

        Args:
            input_ids: [B, T] int64.
            attention_mask: [B, T], 1 at words.
            labels: ignored; losses are taken outside.
        """
        live = attention_mask.bool()
        both = live[:, :-1] & live[:, 1:]
        words = torch.where(live, self.words(input_ids).squeeze(-1), 0.0).sum(-1)
        pairs = torch.where(both, self.pairs(self.pair_ids(input_ids)).squeeze(-1), 0.0).sum(-1)
        z = words + pairs + self.bias
        if self.config.num_labels == 1:
            return SequenceClassifierOutput(logits=z[:, None])
        half = z / 2
        return SequenceClassifierOutput(logits=torch.stack([-half, half], dim=-1))


class ConvConfig(PretrainedConfig):  # type: ignore[misc]
    """Shape of a ConvTextClassifier."""

    model_type = "minichatgpt-conv"

    def __init__(
        self,
        vocab_size: int = 16,
        embedding_size: int = 8,
        num_filters: int = 8,
        kernel_words: int = 3,
        dropout: float = 0.0,
        **kwargs: object,
    ) -> None:
        super().__init__(**kwargs)
        self.vocab_size = vocab_size
        self.embedding_size = embedding_size
        self.num_filters = num_filters
        self.kernel_words = kernel_words
        self.dropout = dropout


class ConvTextClassifier(PreTrainedModel):  # type: ignore[misc]
    """A weight per word, plus a convolution over word embeddings, its mean and maximum over the text.

    After Kim 2014 (arXiv:1408.5882); the weights per word are a linear classifier beside it.
    """

    config_class = ConvConfig

    def __init__(self, config: ConvConfig) -> None:
        super().__init__(config)
        self.words = nn.Embedding(config.vocab_size, 1)
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_size)
        self.conv = nn.Conv1d(
            config.embedding_size, config.num_filters, config.kernel_words, padding=config.kernel_words // 2
        )
        self.dropout = nn.Dropout(config.dropout)
        self.head = nn.Linear(2 * config.num_filters, config.num_labels)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        if isinstance(module, nn.Embedding) and module.embedding_dim > 1:
            nn.init.normal_(module.weight, std=0.3)
        elif isinstance(module, nn.Embedding):
            nn.init.zeros_(module.weight)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor | None = None
    ) -> SequenceClassifierOutput:
        """Two logits, or one; arguments as in BagClassifier.forward."""
        live = attention_mask.bool()[:, :, None]
        single = (self.words(input_ids) * live).sum((1, 2)) / 2
        words = self.embedding(input_ids) * live
        features = torch.relu(self.conv(words.transpose(1, 2))).transpose(1, 2)[:, : input_ids.shape[1]]
        features = features * live  # relu makes 0 the least, so that the maximum ignores padding
        mean = features.sum(1) / live.sum(1).clamp(min=1)
        pooled = torch.cat([mean, features.amax(1)], dim=-1)
        one = [2 * single] if self.config.num_labels == 1 else [-single, single]
        logits = self.head(self.dropout(pooled)) + torch.stack(one, dim=-1)
        return SequenceClassifierOutput(logits=logits)


def register_classifiers() -> None:
    """Let `AutoModelForSequenceClassification.from_pretrained` find our classifiers by their model_type."""
    for config, model in ((BagConfig, BagClassifier), (ConvConfig, ConvTextClassifier)):
        AutoConfig.register(config.model_type, config, exist_ok=True)
        AutoModelForSequenceClassification.register(config, model, exist_ok=True)


def load_classifier(path: str) -> PreTrainedModel:
    """A classifier from a folder or the hub (`name@revision`), dropout off, in evaluation mode."""
    register_classifiers()
    with loading(path) as (name, revision):
        model = AutoModelForSequenceClassification.from_pretrained(name, revision=revision)
    return without_dropout(model)
