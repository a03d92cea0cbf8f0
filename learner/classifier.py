"""Classifiers to train: untrained, pre-trained, or a language model with a new head; and their padded inputs."""

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import AutoModelForSequenceClassification, PreTrainedModel, PreTrainedTokenizerBase

from common.classifier_config import (
    BagOfNgrams,
    ConvClassifier,
    PolicyClassifier,
    PretrainedClassifier,
    RewardModelConfig,
)
from common.classifiers import BagClassifier, BagConfig, ConvConfig, ConvTextClassifier, register_classifiers
from common.errors import ConfigError
from common.hub import join_revision, loading
from common.padding import mask_of, pad_right
from common.records import Ids
from common.text import load_classifier_tokenizer, train_word_tokenizer


def start_classifier(
    table: RewardModelConfig, texts: Sequence[str], *, num_labels: int, policy: str | None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """An untrained, or a pre-trained, classifier and its tokenizer.

    Args:
        table: which.
        texts: of which a new tokenizer learns its words.
        num_labels: logits; 1 for a score alone, of which no head that is there already is kept, unless it has one.
        policy: folder or name of the policy that a classifier of type `policy` starts from.

    Raises:
        ConfigError: the classifier cannot be had, or not with that many logits.
    """
    match table.classifier:
        case PretrainedClassifier(path=path, revision=revision):
            return _pretrained(join_revision(path, revision), num_labels)
        case PolicyClassifier():
            assert policy is not None, "the pipeline names the policy that a classifier starts from"
            return _pretrained(policy, num_labels)
        case BagOfNgrams() | ConvClassifier() if num_labels > 2:
            raise ConfigError(f'classifier type "{table.classifier.type}" tells two classes apart, got {num_labels}')
        case BagOfNgrams() as shape:
            tokenizer = _tokenizer(texts, shape.vocabulary_size, table)
            bag = BagConfig(vocab_size=len(tokenizer), pair_buckets=shape.pair_buckets, num_labels=num_labels)
            return BagClassifier(bag), tokenizer
        case ConvClassifier() as shape:
            tokenizer = _tokenizer(texts, shape.vocabulary_size, table)
            conv = ConvConfig(
                vocab_size=len(tokenizer),
                embedding_size=shape.embedding_size,
                num_filters=shape.num_filters,
                kernel_words=shape.kernel_words,
                dropout=shape.dropout,
                num_labels=num_labels,
            )
            return ConvTextClassifier(conv), tokenizer


def _pretrained(source: str, num_labels: int) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A classifier, or a language model whose output head becomes a new one of `num_labels` logits."""
    register_classifiers()
    with loading(source) as (name, at):
        model, loaded = AutoModelForSequenceClassification.from_pretrained(
            name,
            revision=at,
            num_labels=num_labels,
            ignore_mismatched_sizes=num_labels == 1,
            output_loading_info=True,
        )
    if isinstance(model, ConvTextClassifier) and loaded["mismatched_keys"]:
        model.head.reset_parameters()  # transformers leaves to the model what it does not load
    tokenizer = load_classifier_tokenizer(source)
    model.config.pad_token_id = tokenizer.pad_token_id  # those of the decoder kind look for the last word
    return model, tokenizer


def _tokenizer(texts: Sequence[str], vocabulary_size: int, table: RewardModelConfig) -> PreTrainedTokenizerBase:
    return train_word_tokenizer(texts, vocabulary_size=vocabulary_size, max_tokens=table.max_tokens)


def padded(rows: Sequence[Ids], tokenizer: PreTrainedTokenizerBase, device: torch.device) -> tuple[Tensor, Tensor]:
    """[B, T] ids and their attention mask."""
    ids, lengths = pad_right(rows, tokenizer.pad_token_id, device)
    return ids, mask_of(lengths, ids.shape[1]).long()
