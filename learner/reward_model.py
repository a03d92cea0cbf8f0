"""Labels, or preferences, to a classifier whose logit is the score; for the reward model and for the judge.

Preferences are in `learner.preference_model`; all else here is of labels.
"""

import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from accelerate import Accelerator
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.classifier_config import LabelTraining, PreferenceTraining, RewardModelConfig
from common.classifiers import BagClassifier, ConvTextClassifier
from common.config import RunConfig
from common.corpus import Corpus, load_corpus, split
from common.errors import ConfigError
from common.records import Ids, Progress, StageResult
from common.seeds import mix, seed_everything
from common.text import encode_for_classifier
from common.weighted_draws import WeightedDraws
from learner.calibration import expected_calibration_error
from learner.classifier import padded, start_classifier
from learner.optimizers import build_optimizers
from learner.preference_model import train_on_preferences
from learner.supervised import Schedule, batches, draws_by_weight, train

EVALUATION_BATCH = 256


def train_reward_model(
    config: RunConfig,
    table: RewardModelConfig,
    *,
    role: str,
    folder: Path,
    accelerator: Accelerator,
    policy: str | None = None,
) -> Iterator[Progress | StageResult]:
    """Train a classifier as its table says and leave it, with its tokenizer, in `folder`.

    Args:
        config: the run; its data and its seed.
        table: `config.reward_model` or `config.judge`.
        role: `reward_model` or `judge`; names the random numbers.
        folder: where the result goes, in Hugging Face's format.
        accelerator: device and processes.
        policy: where the policy is that a classifier of type `policy` starts from.

    Yields:
        Progress, and last a StageResult with held-out accuracy, by data source, and calibration.
    """
    match table.training:
        case LabelTraining() as training:
            stage = _train_on_labels(config, table, training, role, folder, accelerator, policy)
        case PreferenceTraining() as training:
            stage = train_on_preferences(config, table, training, role, folder, accelerator, policy)
        case None:
            raise ValueError(f"{role} has no training: it is used as it is")
    yield from stage


def _train_on_labels(
    config: RunConfig,
    table: RewardModelConfig,
    training: LabelTraining,
    role: str,
    folder: Path,
    accelerator: Accelerator,
    policy: str | None,
) -> Iterator[Progress | StageResult]:
    """Cross-entropy; arguments as in `train_reward_model`."""
    start = time.perf_counter()
    yield Progress(0, 1, "reading texts")
    corpora = {name: load_corpus(config.data[name]) for name in training.data}
    learned = [
        split(corpus, config.heldout_fraction, "train", training.half)
        for name, corpus in corpora.items()
        for _ in range(training.repeat.get(name, 1))
    ]
    texts = [text for corpus in learned for text in corpus.texts]
    labels = np.concatenate([_labels(corpus) for corpus in learned])
    seed_everything(mix(config.seed, 5 if role == "reward_model" else 6))
    model, tokenizer = start_classifier(table, texts, num_labels=_num_labels(config, training), policy=policy)
    documents = encode_for_classifier(tokenizer, texts, table.max_tokens)
    if isinstance(model, BagClassifier | ConvTextClassifier):
        start_from_naive_bayes(model, documents, labels, scale=training.naive_bayes_scale)
    model.to(accelerator.device)
    prepared = time.perf_counter()
    sizes = dict(zip(corpora, map(len, learned), strict=False))  # repeat, which makes more of them, excludes weights
    draws = draws_by_weight(sizes, training.weights, config.seed)
    yield from _train(
        model, documents, labels, training, tokenizer, seed=config.seed, draws=draws, accelerator=accelerator
    )
    trained = time.perf_counter()
    heldout = {name: split(c, config.heldout_fraction, "heldout") for name, c in corpora.items()}
    metrics = _measure(model, tokenizer, heldout, table)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    yield StageResult(
        {"texts": len(texts), **metrics},
        {"prepare": prepared - start, "train": trained - prepared, "measure": time.perf_counter() - trained},
    )


def _num_labels(config: RunConfig, training: LabelTraining) -> int:
    numbers = {config.data[name].num_labels for name in training.data}
    if len(numbers) > 1:
        raise ConfigError(f"data sources {training.data} have different num_labels {sorted(numbers)}; make them equal")
    return numbers.pop()


def _labels(corpus: Corpus) -> npt.NDArray[np.int64]:
    assert corpus.labels is not None, "the configuration demands labels"
    return corpus.labels


def start_from_naive_bayes(
    model: BagClassifier | ConvTextClassifier,
    documents: Sequence[Ids],
    labels: npt.NDArray[np.int64],
    *,
    scale: float,
) -> None:
    """Set each weight to `scale` times its log-count ratio (Wang & Manning 2012, eq. 2), each word once a text.

    Args:
        model: changed in place.
        documents: ids of each text.
        labels: [N] 0 or 1.
        scale: below 1, for words of a text repeat each other's evidence.
    """
    words = np.concatenate(documents).astype(np.int64)
    owners = np.repeat(np.arange(len(documents)), [len(d) for d in documents])
    _set_log_ratios(model.words.weight, words, owners, labels, scale)
    if isinstance(model, BagClassifier):
        pairs = model.pair_ids(torch.from_numpy(words)[None])[0].numpy()
        inside = owners[:-1] == owners[1:]
        _set_log_ratios(model.pairs.weight, pairs[inside], owners[:-1][inside], labels, scale)


def _set_log_ratios(
    weight: Tensor,
    features: npt.NDArray[np.int64],
    owners: npt.NDArray[np.int64],
    labels: npt.NDArray[np.int64],
    scale: float,
) -> None:
    """Weights [V, 1] from features [F] and the documents [F] that they are of; those seen less than twice stay 0."""
    num = weight.shape[0]
    once = np.unique(owners * num + features)
    of_class = labels[once // num]
    counts = np.stack([1 + np.bincount(once[of_class == label] % num, minlength=num) for label in (0, 1)])
    ratio = np.log(counts[1] / counts[1].sum()) - np.log(counts[0] / counts[0].sum())
    seen = counts.sum(0) - 2 >= 2
    with torch.no_grad():
        weight.copy_(torch.from_numpy(np.where(seen, scale * ratio, 0.0)[:, None]))


def _train(
    model: PreTrainedModel,
    documents: Sequence[Ids],
    labels: npt.NDArray[np.int64],
    training: LabelTraining,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int,
    draws: WeightedDraws | None,
    accelerator: Accelerator,
) -> Iterator[Progress]:
    def loss_of(wrapped: nn.Module, index: np.ndarray) -> tuple[Tensor, Tensor]:
        ids, mask = padded([documents[i] for i in index], tokenizer, accelerator.device)
        logits = wrapped(input_ids=ids, attention_mask=mask).logits
        target = torch.from_numpy(labels[index]).to(accelerator.device)
        total = nn.functional.cross_entropy(logits, target, reduction="sum", label_smoothing=training.label_smoothing)
        return total, torch.tensor(len(index))

    schedule = Schedule.falling(training.epochs, len(documents), training.batch_sequences)
    lengths = [len(d) for d in documents]
    order = batches(lengths, batch_sequences=training.batch_sequences, seed_parts=(seed, 7), draws=draws)
    optimizers = build_optimizers(training.optimizer, model.named_parameters())
    yield from train(
        model, optimizers, loss_of, order, schedule=schedule, max_grad_norm=math.inf, accelerator=accelerator
    )


def _measure(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    heldout: dict[str, Corpus],
    table: RewardModelConfig,
) -> dict[str, object]:
    """Accuracy by data source and over all, and how far stated probabilities are from what is true."""
    accuracy, all_p, all_right = {}, [], []
    device = next(model.parameters()).device
    for name, corpus in heldout.items():
        documents, labels = encode_for_classifier(tokenizer, corpus.texts, table.max_tokens), _labels(corpus)
        probabilities = []
        with torch.inference_mode():
            for start in range(0, len(documents), EVALUATION_BATCH):
                ids, mask = padded(documents[start : start + EVALUATION_BATCH], tokenizer, device)
                probabilities.append(model(input_ids=ids, attention_mask=mask).logits.softmax(-1).cpu())
        p = torch.cat(probabilities)
        right = p.argmax(-1).numpy() == labels
        accuracy[name] = float(right.mean())
        all_p.append(p.amax(-1).numpy())
        all_right.append(right)
    confidence, right = np.concatenate(all_p), np.concatenate(all_right)
    return {
        "accuracy": float(right.mean()),
        "accuracy_by_source": accuracy,
        "calibration_error": expected_calibration_error(confidence, right),
        "heldout_texts": len(right),
    }
