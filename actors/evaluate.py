"""Numbers that compare responses of two policies to the same prompts. Pure functions over arrays and ids.

Legend: N prompts, the same for both.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from common.records import Ids
from common.seeds import generator

RESAMPLES = 10_000
MIN_RESAMPLED = 10
"""Fewest prompts whose outcomes are resampled: fewer say too little of the outcomes that did not come up."""
Z95 = 1.959963984540054
"""97.5 % quantile of the standard normal distribution."""


def distinct_n(responses: Sequence[Ids], n: int, *, ignore: frozenset[int] = frozenset()) -> float:
    """Distinct n-grams over all n-grams of all responses (arXiv:1510.03055): 1 if none repeats.

    Args:
        responses: ids of each response.
        n: words of an n-gram.
        ignore: ids that are no words, as EOS.
    """
    grams = [
        tuple(words[i : i + n])
        for words in ([int(t) for t in r if int(t) not in ignore] for r in responses)
        for i in range(len(words) - n + 1)
    ]
    return len(set(grams)) / len(grams) if grams else 0.0


def win_rate(
    before: npt.NDArray[np.float64], after: npt.NDArray[np.float64], *, seed: int = 0
) -> tuple[float, tuple[float, float]]:
    """Share of prompts on which the judge prefers the response after; a tie counts half.

    Args:
        before: [N] the judge's number for the responses before.
        after: [N] for those after, in the same order.
        seed: of the bootstrap.

    Returns:
        The rate and its 95 % interval, by the percentile bootstrap over prompts; by Wilson's formula where there are
        fewer than `MIN_RESAMPLED` prompts, or the bootstrap's has no width, as where all are won.
    """
    if before.shape != after.shape or before.size == 0:
        raise ValueError(f"win rate needs the same prompts before and after, got {before.shape} and {after.shape}")
    wins = (after > before) + 0.5 * (after == before)
    outcomes, counts = np.unique(wins, return_counts=True)
    resampled = generator(seed, 10).multinomial(len(wins), counts / len(wins), size=RESAMPLES) @ outcomes / len(wins)
    low, high = np.quantile(resampled, [0.025, 0.975])
    rate = float(wins.mean())
    if len(wins) < MIN_RESAMPLED or low == high:
        low, high = wilson_interval(rate, len(wins))
    return rate, (float(low), float(high))


def wilson_interval(rate: float, number: int) -> tuple[float, float]:
    """95 % score interval of a share of independent trials (Wilson, 1927, doi:10.1080/01621459.1927.10502953).

    Args:
        rate: the share, from 0 to 1.
        number: of trials, at least one.
    """
    per_trial = Z95**2 / number
    middle = (rate + per_trial / 2) / (1 + per_trial)
    half = np.sqrt(per_trial * rate * (1 - rate) + per_trial**2 / 4) / (1 + per_trial)
    # The formula holds the rate between its ends, which rounding may undo at 0 and 1.
    return min(float(middle - half), rate), max(float(middle + half), rate)


def standardised_rise(before: npt.NDArray[np.float64], after: npt.NDArray[np.float64]) -> float:
    """Mean difference over the standard deviation before (Glass's delta), so that scores of two scales compare.

    Where all scores before are equal there is no scale, and the plain difference is returned.

    Args:
        before: [N] scores of the responses before.
        after: [N] of those after, in the same order.
    """
    scale = float(before.std())
    return float((after - before).mean()) / (scale if scale > 0 else 1.0)
