"""Numbers that compare responses of two policies to the same prompts. Pure functions over arrays and ids.

Legend: N prompts, the same for both.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from common.records import Ids
from common.seeds import generator

RESAMPLES = 10_000


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
        The rate and its 95 % interval, by the percentile bootstrap over prompts.
    """
    if before.shape != after.shape or before.size == 0:
        raise ValueError(f"win rate needs the same prompts before and after, got {before.shape} and {after.shape}")
    wins = (after > before) + 0.5 * (after == before)
    outcomes, counts = np.unique(wins, return_counts=True)
    resampled = generator(seed, 10).multinomial(len(wins), counts / len(wins), size=RESAMPLES) @ outcomes / len(wins)
    low, high = np.quantile(resampled, [0.025, 0.975])
    return float(wins.mean()), (float(low), float(high))


def standardised_rise(before: npt.NDArray[np.float64], after: npt.NDArray[np.float64]) -> float:
    """Mean difference over the standard deviation before (Glass's delta), so that scores of two scales compare.

    Where all scores before are equal there is no scale, and the plain difference is returned.

    Args:
        before: [N] scores of the responses before.
        after: [N] of those after, in the same order.
    """
    scale = float(before.std())
    return float((after - before).mean()) / (scale if scale > 0 else 1.0)
