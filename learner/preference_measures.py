"""What scores say of held-out rankings: accuracy, calibration, their distribution, and whether they follow length."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from learner.calibration import expected_calibration_error
from learner.preference_loss import Pairs

Floats = npt.NDArray[np.float64]

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
HISTOGRAM_BINS = 24


@dataclass(frozen=True, slots=True)
class PairMeasures:
    """Of pairs; a pair counts by its weight, so that each ranking counts once; equal scores are half right."""

    accuracy: float
    """Share of the pairs whose better text has the higher score."""
    calibration_error: float
    """Mean gap between the stated chance of the likelier order and how often it is the right one."""
    score_gap: float
    """Mean score of the better text less that of the worse one."""
    shorter_fraction: float
    """Share of the pairs whose better response has fewer words."""
    longer_fraction: float
    """Share of the pairs whose better response has more words."""
    accuracy_shorter: float | None
    """Accuracy on pairs whose better response is the shorter one; None if there are none."""
    accuracy_longer: float | None
    """The same where it is the longer one: far above the other, the model takes length for quality."""


def measure_pairs(scores: Floats, words: npt.NDArray[np.int64], pairs: Pairs) -> PairMeasures:
    """How well scores order pairs.

    Args:
        scores: [T] one per text.
        words: [T] of the responses.
        pairs: whose indices are of them.
    """
    gaps, weights = scores[pairs.better] - scores[pairs.worse], pairs.weights.astype(np.float64)
    right = np.where(gaps > 0, 1.0, np.where(gaps == 0, 0.5, 0.0))
    confidence = 1 / (1 + np.exp(-np.abs(gaps)))
    shorter, longer = words[pairs.better] < words[pairs.worse], words[pairs.better] > words[pairs.worse]
    return PairMeasures(
        accuracy=float(np.average(right, weights=weights)),
        calibration_error=expected_calibration_error(confidence, right, weights),
        score_gap=float(np.average(gaps, weights=weights)),
        shorter_fraction=float(np.average(shorter, weights=weights)),
        longer_fraction=float(np.average(longer, weights=weights)),
        accuracy_shorter=_average(right, weights, shorter),
        accuracy_longer=_average(right, weights, longer),
    )


def _average(values: Floats, weights: Floats, where: npt.NDArray[np.bool_]) -> float | None:
    return float(np.average(values[where], weights=weights[where])) if where.any() else None


def measure_scores(scores: Floats, words: npt.NDArray[np.int64]) -> dict[str, object]:
    """How scores are distributed, and how they go with length.

    Args:
        scores: [T] one per text.
        words: [T] of the responses.

    Returns:
        Mean, standard deviation, quantiles, a histogram, and Pearson's and Spearman's correlation with the words; a
        correlation is None where all scores, or all lengths, are equal.
    """
    counts, edges = np.histogram(scores, bins=HISTOGRAM_BINS)
    varies = np.ptp(scores) > 0 and np.ptp(words) > 0
    return {
        "score_mean": float(scores.mean()),
        "score_std": float(scores.std()),
        "score_quantiles": {f"{q:g}": float(np.quantile(scores, q)) for q in QUANTILES},
        "score_histogram": {"edges": edges.tolist(), "counts": counts.tolist()},
        "length_pearson": float(np.corrcoef(scores, words)[0, 1]) if varies else None,
        "length_spearman": float(np.corrcoef(ranks(scores), ranks(words))[0, 1]) if varies else None,
    }


def ranks(values: npt.NDArray[Any]) -> Floats:
    """[N] place of each value in their order, from 1; equal ones share the mean of their places."""
    _, where, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    middle: Floats = last - (counts - 1) / 2
    return middle[where]


def as_metrics(measures: PairMeasures) -> dict[str, object]:
    """By name."""
    return asdict(measures)
