"""Several ways of doing the same, measured in turns, so that what else the machine does meets all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping

Timed = Mapping[str, list[float]]


def interleave(ways: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int = 1) -> Timed:
    """Seconds of each way in each round, in which the ways take turns, every second round in the opposite order.

    Args:
        ways: by name; each does the whole work once.
        rounds: measured ones.
        warm_up: rounds before, whose times are thrown away.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(warm_up + rounds):
        order = list(ways)[:: 1 if number % 2 == 0 else -1]
        for name in order:
            start = time.perf_counter()
            ways[name]()
            if number >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def median(timed: Timed, name: str) -> float:
    """Median seconds of a way."""
    return statistics.median(timed[name])


def speedup(timed: Timed, of: str, over: str) -> float:
    """Median over rounds of how many times faster `of` is than `over` was in the same round."""
    return statistics.median(b / a for a, b in zip(timed[of], timed[over], strict=True))
