"""Whether a classifier is as sure as it should be."""

import numpy as np
import numpy.typing as npt

BINS = 10


def expected_calibration_error(
    confidence: npt.NDArray[np.floating],
    right: npt.NDArray[np.bool_] | npt.NDArray[np.floating],
    weights: npt.NDArray[np.floating] | None = None,
) -> float:
    """Mean gap between stated confidence and accuracy, over equal bins of confidence (arXiv:1706.04599, eq. 3).

    Args:
        confidence: [N] probability of the chosen class.
        right: [N] whether it was the true one.
        weights: [N] how much each counts; None: all alike.
    """
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    weights = np.ones(len(bins)) if weights is None else weights
    error = 0.0
    for b in np.unique(bins):
        inside, share = bins == b, weights[bins == b].sum() / weights.sum()
        stated = np.average(confidence[inside], weights=weights[inside])
        error += share * abs(stated - np.average(right[inside], weights=weights[inside]))
    return float(error)
