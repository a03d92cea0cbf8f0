"""Next-token training: pre-training of a fresh model, and supervised fine-tuning on demonstrations."""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.config import LanguageModelTraining, RunConfig
from common.corpus import Corpus, load_corpus, split
from common.errors import DataError
from common.logprobs import next_token_loss
from common.modeling import fresh_policy, load_policy
from common.padding import pad_right
from common.records import Ids, Progress, StageResult
from common.seeds import mix, permutation, seed_everything
from common.text import encode, encode_documents, load_tokenizer, train_word_tokenizer
from learner.optimizers import build_optimizers
from learner.supervised import Schedule, batches, train

EVALUATION_BATCH = 64
_HELDOUT = 11
"""Names the choice of held-out texts among the run's random numbers."""


def perplexity(model: PreTrainedModel, documents: Sequence[Ids]) -> float:
    """Exp of the mean cross-entropy per token, EOS included and the first token of each text left out.

    Args:
        model: in evaluation mode.
        documents: ids of each text.
    """
    total, count = 0.0, 0
    by_length = sorted(documents, key=len)
    device = next(model.parameters()).device
    with torch.inference_mode():
        for start in range(0, len(by_length), EVALUATION_BATCH):
            ids, lengths = pad_right(by_length[start : start + EVALUATION_BATCH], 0, device)
            nats, tokens = next_token_loss(model(input_ids=ids, use_cache=False).logits, ids, lengths)
            total, count = total + float(nats), count + int(tokens)
    return math.exp(total / max(1, count))


def train_language_model(
    config: RunConfig, table: LanguageModelTraining, *, source: str | None, folder: Path, accelerator: Accelerator
) -> Iterator[Progress | StageResult]:
    """Train on the texts that the table names and leave model and tokenizer in `folder`.

    Args:
        config: the run; its data, its seed and, for a fresh model, its shape.
        table: `config.pretrain` or `config.sft`.
        source: folder or name of the model to go on from; None: a fresh model and tokenizer.
        folder: where the result goes, in Hugging Face's format.
        accelerator: device and processes.

    Yields:
        Progress, and last a StageResult with held-out perplexity before and after, by data source.
    """
    start = time.perf_counter()
    yield Progress(0, 1, "reading texts")
    corpora = {name: load_corpus(config.data[name]) for name in config.data_of_language_models()}
    learned = {name: split(corpora[name], config.heldout_fraction, "train") for name in table.data}
    seed_everything(mix(config.seed, 3))
    model, tokenizer = _start(config, source, learned)
    documents = documents_of(learned, tokenizer, table)
    heldout = _heldout(config, table, corpora, tokenizer)
    model.to(accelerator.device)
    before = {name: perplexity(model, texts) for name, texts in heldout.items()} if source is not None else {}
    prepared = time.perf_counter()
    schedule = schedule_of(table, len(documents))
    yield from _train(model, documents, table, schedule, seed=config.seed, accelerator=accelerator)
    trained = time.perf_counter()
    after = {name: perplexity(model, texts) for name, texts in heldout.items()}
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    yield StageResult(
        {
            "perplexity_before": before,
            "perplexity_after": after,
            "texts": len(documents),
            "texts_left_out": sum(left_out(c.texts, tokenizer) for c in learned.values()) if table.drop_unknown else 0,
            "tokens": sum(len(d) for d in documents),
            "steps": schedule.steps,
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        {"prepare": prepared - start, "train": trained - prepared, "measure": time.perf_counter() - trained},
    )


def _train(
    model: PreTrainedModel,
    documents: Sequence[Ids],
    table: LanguageModelTraining,
    schedule: Schedule,
    *,
    seed: int,
    accelerator: Accelerator,
) -> Iterator[Progress]:
    """Optimizer steps over the documents, as the table says."""

    def loss_of(wrapped: nn.Module, index: np.ndarray) -> tuple[Tensor, Tensor]:
        ids, lengths = pad_right([documents[i] for i in index], 0, accelerator.device)
        return next_token_loss(wrapped(input_ids=ids, use_cache=False).logits, ids, lengths)

    order = batches([len(d) for d in documents], batch_sequences=table.batch_sequences, seed_parts=(seed, 4))
    optimizers = build_optimizers(table.optimizer, model.named_parameters())
    yield from train(
        model,
        optimizers,
        loss_of,
        order,
        schedule=schedule,
        max_grad_norm=table.max_grad_norm,
        accelerator=accelerator,
    )


def schedule_of(table: LanguageModelTraining, num_documents: int) -> Schedule:
    """Rates and number of steps over so many documents."""
    steps = max(1, round(table.epochs * num_documents / min(table.batch_sequences, num_documents)))
    return Schedule(steps, table.warmup_fraction, table.decay_fraction, table.final_fraction)


def _start(
    config: RunConfig, source: str | None, learned: dict[str, Corpus]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model to train and its tokenizer."""
    if source is not None:
        return load_policy(source), load_tokenizer(source)
    assert config.model.type == "fresh", "only a fresh model starts from nothing"
    texts = [text for corpus in learned.values() for text in corpus.texts]
    tokenizer = train_word_tokenizer(
        texts, vocabulary_size=config.model.vocabulary_size, max_tokens=config.model.max_tokens
    )
    return fresh_policy(config.model, tokenizer).eval(), tokenizer


def left_out(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> int:
    """How many texts have a word outside of the vocabulary."""
    return sum(tokenizer.unk_token_id in ids for ids in encode(tokenizer, texts))


def documents_of(
    corpora: dict[str, Corpus], tokenizer: PreTrainedTokenizerBase, table: LanguageModelTraining
) -> list[Ids]:
    """Ids of each text, or passage, that is left to train on; raises DataError if none is."""
    documents = [ids for corpus in corpora.values() for ids in _encode_corpus(corpus, tokenizer, table) if len(ids) > 1]
    if not documents:
        raise DataError(
            f"no text of {', '.join(corpora)} is left to train on: all have words outside of the vocabulary of "
            f"{len(tokenizer)}; raise model.vocabulary_size or set drop_unknown = false"
        )
    return documents


def _encode_corpus(corpus: Corpus, tokenizer: PreTrainedTokenizerBase, table: LanguageModelTraining) -> list[Ids]:
    """Ids of each text, or of each passage where texts are joined."""
    texts: list[str] = corpus.texts
    groups: npt.NDArray[Any] | None = None
    match table.join:
        case "document":
            groups = corpus.document_ids
        case "label":
            if corpus.labels is None:
                raise DataError('join = "label" needs labels; set label_column of the data source, or join = "none"')
            order = np.argsort(corpus.labels, kind="stable")
            texts, groups = [texts[i] for i in order], corpus.labels[order]
    return encode_documents(
        tokenizer, texts, max_tokens=table.max_tokens, drop_unknown=table.drop_unknown, groups=groups
    )


def _heldout(
    config: RunConfig, table: LanguageModelTraining, corpora: dict[str, Corpus], tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[Ids]]:
    """Held-out documents by data source, of this stage and of the other one, so that forgetting is seen."""
    heldout = {}
    for name, corpus in corpora.items():
        texts = documents_of({name: split(corpus, config.heldout_fraction, "heldout")}, tokenizer, table)
        chosen = permutation(len(texts), config.seed, _HELDOUT)[: table.heldout_texts]  # a file may be sorted by label
        heldout[name] = [texts[i] for i in chosen]
    return heldout
