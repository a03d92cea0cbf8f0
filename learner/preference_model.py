"""Rankings to a classifier with one logit, the score: Bradley-Terry, as InstructGPT trains it (arXiv:2203.02155).

    preferences ─▶ texts, rankings ─▶ one pass over the texts of a batch of rankings ─▶ loss over their pairs

All K texts of a ranking are in one batch, so that each is passed once, not K - 1 times (InstructGPT, section 3.5).
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.classifier_config import PreferenceTraining, RewardModelConfig
from common.config import RunConfig
from common.preferences import Preferences, load_preferences
from common.records import Ids, Progress, StageResult
from common.seeds import mix, seed_everything
from common.text import encode_for_classifier
from common.weighted_draws import WeightedDraws
from learner.classifier import padded, start_classifier
from learner.optimizers import build_optimizers
from learner.preference_loss import pairs_of, preference_loss
from learner.preference_measures import as_metrics, measure_pairs, measure_scores
from learner.supervised import Schedule, batches, draws_by_weight, train

EVALUATION_BATCH = 128
"""Texts of one pass while measuring."""


@dataclass(frozen=True, slots=True)
class _Rankings:
    """Of several data sources, each as often as the table says."""

    texts: list[str]
    rankings: list[npt.NDArray[np.int64]]
    margins: npt.NDArray[np.float32]


def train_on_preferences(
    config: RunConfig,
    table: RewardModelConfig,
    training: PreferenceTraining,
    role: str,
    folder: Path,
    accelerator: Accelerator,
    policy: str | None,
) -> Iterator[Progress | StageResult]:
    """Train a classifier of one logit; arguments as in `train_reward_model`.

    Yields:
        Progress, and last a StageResult with what held-out pairs say: accuracy, by data source, calibration, the
        distribution of scores and how they go with length.
    """
    start = time.perf_counter()
    yield Progress(0, 1, "reading preferences")
    learned = {
        name: load_preferences(config.data[name], config.heldout_fraction, "train", training.half)
        for name in training.data
    }
    together = _together(learned, training.repeat)
    seed_everything(mix(config.seed, 5 if role == "reward_model" else 6))
    model, tokenizer = start_classifier(table, together.texts, num_labels=1, policy=policy)
    documents = encode_for_classifier(tokenizer, together.texts, table.max_tokens)
    model.to(accelerator.device)
    prepared = time.perf_counter()
    draws = draws_by_weight({name: len(source) for name, source in learned.items()}, training.weights, config.seed)
    yield from _train(
        model, documents, together, training, tokenizer, seed=config.seed, draws=draws, accelerator=accelerator
    )
    trained = time.perf_counter()
    heldout = {name: load_preferences(config.data[name], config.heldout_fraction, "heldout") for name in training.data}
    metrics = _measure(model, tokenizer, heldout, table)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    yield StageResult(
        {
            "rankings": len(together.rankings),
            "left_out": sum(p.num_left_out for p in learned.values()),
            **metrics,
        },
        {"prepare": prepared - start, "train": trained - prepared, "measure": time.perf_counter() - trained},
    )


def _together(preferences: dict[str, Preferences], repeat: dict[str, int]) -> _Rankings:
    """One list of texts, and rankings whose indices are of it."""
    texts: list[str] = []
    rankings: list[npt.NDArray[np.int64]] = []
    margins: list[npt.NDArray[np.float32]] = []
    for name, source in preferences.items():
        for _ in range(repeat.get(name, 1)):
            rankings += [ranking + len(texts) for ranking in source.rankings]
            margins.append(source.margins)
        texts += source.texts
    return _Rankings(texts, rankings, np.concatenate(margins))


def _train(
    model: PreTrainedModel,
    documents: Sequence[Ids],
    data: _Rankings,
    training: PreferenceTraining,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    draws: WeightedDraws | None,
    accelerator: Accelerator,
) -> Iterator[Progress]:
    def loss_of(wrapped: nn.Module, index: np.ndarray) -> tuple[Tensor, Tensor]:
        chosen = [data.rankings[i] for i in index]
        used, places = np.unique(np.concatenate(chosen), return_inverse=True)
        ids, mask = padded([documents[i] for i in used], tokenizer, accelerator.device)
        scores = wrapped(input_ids=ids, attention_mask=mask).logits[:, 0].float()
        rankings = np.split(places, np.cumsum([len(ranking) for ranking in chosen])[:-1])
        total = preference_loss(
            scores,
            pairs_of(rankings, data.margins[index]),
            margin_coef=training.margin_coef,
            centring_coef=training.centring_coef,
        )
        return total, torch.tensor(len(index))

    schedule = Schedule.falling(training.epochs, len(data.rankings), training.batch_rankings)
    longest = [max(len(documents[i]) for i in ranking) for ranking in data.rankings]
    order = batches(longest, batch_sequences=training.batch_rankings, seed_parts=(seed, 7), draws=draws)
    yield from train(
        model,
        build_optimizers(training.optimizer, model.named_parameters()),
        loss_of,
        order,
        schedule=schedule,
        max_grad_norm=training.max_grad_norm,
        accelerator=accelerator,
    )


def _measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    heldout: dict[str, Preferences],
    table: RewardModelConfig,
) -> dict[str, object]:
    """What the scores of held-out texts say, by data source and over all."""
    together = _together(heldout, {})
    scores = score_texts(model, tokenizer, together.texts, table.max_tokens)
    words = np.concatenate([source.response_words for source in heldout.values()])
    accuracy, start = {}, 0
    for name, source in heldout.items():
        own = slice(start, start + len(source.texts))
        pairs = pairs_of(source.rankings, source.margins)
        accuracy[name] = measure_pairs(scores[own], source.response_words, pairs).accuracy
        start = own.stop
    pairs = pairs_of(together.rankings, together.margins)
    return {
        **as_metrics(measure_pairs(scores, words, pairs)),
        "accuracy_by_source": accuracy,
        "heldout_rankings": len(together.rankings),
        "heldout_pairs": len(pairs.better),
        **measure_scores(scores, words),
    }


def score_texts(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int
) -> npt.NDArray[np.float64]:
    """[T] the single logit of each text, by a model in evaluation mode."""
    documents = encode_for_classifier(tokenizer, texts, max_tokens)
    order = np.argsort([len(document) for document in documents], kind="stable")
    device = next(model.parameters()).device
    scores = np.empty(len(documents))
    with torch.inference_mode():
        for start in range(0, len(order), EVALUATION_BATCH):
            rows = order[start : start + EVALUATION_BATCH]
            ids, mask = padded([documents[i] for i in rows], tokenizer, device)
            scores[rows] = model(input_ids=ids, attention_mask=mask).logits[:, 0].double().cpu().numpy()
    return scores
