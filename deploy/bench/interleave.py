"""Several ways of doing the same, measured in turns, so that what else the machine does meets all of them alike."""

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

Timed = Mapping[str, list[float]]
Told = TypeVar("Told")


def take_turns(ways: Mapping[str, Callable[[], Told]], *, rounds: int, warm_up: int = 1) -> Mapping[str, list[Told]]:
    """What each way says in each round, in which the ways take turns, every second round in the opposite order.

    Args:
        ways: by name; each does the whole work once.
        rounds: measured ones.
        warm_up: rounds before, of which nothing is kept.
    """
    told: dict[str, list[Told]] = {name: [] for name in ways}
    for number in range(warm_up + rounds):
        for name in list(ways)[:: 1 if number % 2 == 0 else -1]:
            said = ways[name]()
            if number >= warm_up:
                told[name].append(said)
    return told


def interleave(ways: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: int = 1) -> Timed:
    """Seconds of each way in each round, as `take_turns` has them."""

    def clocked(way: Callable[[], object]) -> Callable[[], float]:
        def seconds() -> float:
            start = time.perf_counter()
            way()
            return time.perf_counter() - start

        return seconds

    return take_turns({name: clocked(way) for name, way in ways.items()}, rounds=rounds, warm_up=warm_up)


def median(timed: Timed, name: str) -> float:
    """Median seconds of a way."""
    return statistics.median(timed[name])


def speedup(timed: Timed, of: str, over: str) -> float:
    """Median over rounds of how many times faster `of` is than `over` was in the same round."""
    return statistics.median(b / a for a, b in zip(timed[of], timed[over], strict=True))
