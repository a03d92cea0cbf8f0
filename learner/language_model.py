"""Next-token training: pre-training of a fresh model, and supervised fine-tuning on demonstrations."""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.config import LanguageModelTraining, RunConfig
from common.corpus import Corpus
from common.demonstrations import Demonstrations
from common.dialogue import Example
from common.errors import DataError
from common.fused_layers import fuse_layers
from common.logprobs import next_token_loss
from common.modeling import fresh_policy, load_policy, save_policy
from common.records import Progress, StageResult
from common.seeds import mix, permutation, seed_everything
from common.text import load_tokenizer, train_word_tokenizer
from common.weighted_draws import WeightedDraws
from learner.examples import Examples, Loaded, encode_source, load_source, pad_examples, split_source
from learner.optimizers import build_optimizers
from learner.supervised import Schedule, batches, draws_by_weight, train

EVALUATION_BATCH = 64
_HELDOUT = 11
"""Names the choice of held-out texts among the run's random numbers."""


def perplexity(model: PreTrainedModel, examples: Sequence[Example]) -> float:
    """Exp of the mean cross-entropy per learned token, EOS included and the first token of each text left out.

    Args:
        model: in evaluation mode.
        examples: of demonstrations, only the responses count.
    """
    total, count = 0.0, 0
    by_length = sorted(examples, key=len)
    device = next(model.parameters()).device
    with torch.inference_mode():
        for start in range(0, len(by_length), EVALUATION_BATCH):
            ids, lengths, learned = pad_examples(by_length[start : start + EVALUATION_BATCH], device)
            nats, tokens = next_token_loss(model(input_ids=ids, use_cache=False).logits, ids, lengths, learned)
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
    loaded = {name: load_source(config.data[name]) for name in config.data_of_language_models()}
    learned = {name: split_source(loaded[name], config.heldout_fraction, "train") for name in table.data}
    seed_everything(mix(config.seed, 3))
    model, tokenizer = _start(config, source, learned)
    encoded = {name: encode_source(name, part, tokenizer, table) for name, part in learned.items()}
    examples = _gathered(encoded, tokenizer)
    yield Progress(0, 1, _what_was_cut(encoded, table))
    heldout = _heldout(config, table, loaded, tokenizer)
    model.to(accelerator.device)
    fuse_layers(model)
    before = {name: perplexity(model, texts) for name, texts in heldout.items()} if source is not None else {}
    prepared = time.perf_counter()
    schedule = schedule_of(table, len(examples))
    draws = draws_by_weight({name: len(part) for name, part in encoded.items()}, table.weights, config.seed)
    yield from _train(model, examples, table, schedule, seed=config.seed, draws=draws, accelerator=accelerator)
    trained = time.perf_counter()
    after = {name: perplexity(model, texts) for name, texts in heldout.items()}
    save_policy(model, tokenizer, Path(folder))
    yield StageResult(
        {
            "perplexity_before": before,
            "perplexity_after": after,
            "texts": len(examples),
            "texts_left_out": sum(part.left_out for part in encoded.values()),
            "tokens": sum(len(example) for example in examples),
            **_of_demonstrations(encoded, learned),
            "steps": schedule.steps,
            "parameters": sum(p.numel() for p in model.parameters()),
        },
        {"prepare": prepared - start, "train": trained - prepared, "measure": time.perf_counter() - trained},
    )


def _train(
    model: PreTrainedModel,
    examples: Sequence[Example],
    table: LanguageModelTraining,
    schedule: Schedule,
    *,
    seed: int,
    draws: WeightedDraws | None,
    accelerator: Accelerator,
) -> Iterator[Progress]:
    """Optimizer steps over the examples, as the table says."""

    def loss_of(wrapped: nn.Module, index: np.ndarray) -> tuple[Tensor, Tensor]:
        ids, lengths, learned = pad_examples([examples[i] for i in index], accelerator.device)
        return next_token_loss(wrapped(input_ids=ids, use_cache=False).logits, ids, lengths, learned)

    lengths = [len(example) for example in examples]
    order = batches(lengths, batch_sequences=table.batch_sequences, seed_parts=(seed, 4), draws=draws)
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


def _what_was_cut(encoded: dict[str, Examples], table: LanguageModelTraining) -> str:
    cut = sum(part.responses_cut for part in encoded.values())
    too_long = sum(part.too_long for part in encoded.values())
    if not cut and not too_long:
        return "texts read"
    return f"max_tokens={table.max_tokens}: {cut} responses cut, {too_long} prompts without room for one left out"


def _of_demonstrations(encoded: dict[str, Examples], learned: dict[str, Loaded]) -> dict[str, int]:
    """Counts that are of demonstrations only; nothing where there are none."""
    parts = [encoded[name] for name, part in learned.items() if isinstance(part, Demonstrations)]
    if not parts:
        return {}
    return {
        "demonstrations": sum(len(part) for part in parts),
        "demonstrations_too_long": sum(part.too_long for part in parts),
        "responses_cut": sum(part.responses_cut for part in parts),
        "tokens_learned": sum(int(e.learned[1:].sum()) for part in encoded.values() for e in part.items),
    }


def schedule_of(table: LanguageModelTraining, num_documents: int) -> Schedule:
    """Rates and number of steps over so many examples."""
    steps = max(1, round(table.epochs * num_documents / min(table.batch_sequences, num_documents)))
    return Schedule(steps, table.warmup_fraction, table.decay_fraction, table.final_fraction)


def _start(
    config: RunConfig, source: str | None, learned: dict[str, Loaded]
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model to train and its tokenizer."""
    if source is not None:
        return load_policy(source), load_tokenizer(source)
    assert config.model.type == "fresh", "only a fresh model starts from nothing"
    texts = [text for corpus in learned.values() if isinstance(corpus, Corpus) for text in corpus.texts]
    tokenizer = train_word_tokenizer(
        texts, vocabulary_size=config.model.vocabulary_size, max_tokens=config.model.max_tokens
    )
    return fresh_policy(config.model, tokenizer).eval(), tokenizer


def _gathered(encoded: dict[str, Examples], tokenizer: PreTrainedTokenizerBase) -> list[Example]:
    examples = [example for part in encoded.values() for example in part.items]
    if not examples:
        raise DataError(
            f"no text of {', '.join(encoded)} is left to train on: all have words outside of the vocabulary of "
            f"{len(tokenizer)}; raise model.vocabulary_size or set drop_unknown = false"
        )
    return examples


def _heldout(
    config: RunConfig, table: LanguageModelTraining, loaded: dict[str, Loaded], tokenizer: PreTrainedTokenizerBase
) -> dict[str, list[Example]]:
    """Held-out examples by data source, of this stage and of the other one, so that forgetting is seen."""
    heldout = {}
    for name, whole in loaded.items():
        part = split_source(whole, config.heldout_fraction, "heldout")
        examples = _gathered({name: encode_source(name, part, tokenizer, table)}, tokenizer)
        chosen = permutation(len(examples), config.seed, _HELDOUT)[: table.heldout_texts]  # may be sorted by label
        heldout[name] = [examples[i] for i in chosen]
    return heldout
