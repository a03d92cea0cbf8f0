"""What a replay found: recorded and recomputed numbers side by side, and how far apart they are. Pure.

Numbers that are equal bit for bit differ by 0; NaN equals NaN; where one side has no number the difference is infinite,
which JSON writes as null.
"""

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from deploy.control.run_status import Status

WeightsVerdict = Literal["same", "differ", "not recorded"]


class Compared(Status):
    """One number of an update."""

    recorded: float | None
    """Null where it is not finite or was not recorded."""
    recomputed: float | None
    """Null where it is not finite or was not recomputed."""
    difference: float
    """Its size; infinite where only one side has a number."""


class LargestDifference(Status):
    """Where two sides are furthest apart."""

    name: str
    """Metric or tensor; empty where nothing differs."""
    difference: float
    """Its size."""


class UpdateReplay(Status):
    """One update, recomputed."""

    update: int
    metrics: dict[str, Compared]
    """By name, as in metrics.jsonl."""
    weights: WeightsVerdict
    """Whether the policy has the hash that was recorded: then each of its numbers is the same. Runs of older versions
    have recorded none."""
    weights_hash: str
    """Of the recomputed policy."""
    tensors: LargestDifference | None = None
    """Against the checkpoint of this update, where one is kept: policy, value head, optimizer state, KL controller and
    score statistics; null where none is."""

    @property
    def largest_metric(self) -> LargestDifference:
        """The metric that is furthest off."""
        name, compared = max(self.metrics.items(), key=lambda item: item[1].difference)
        return LargestDifference(name=name if compared.difference else "", difference=compared.difference)

    @property
    def is_same(self) -> bool:
        """Whether nothing differs."""
        is_off = self.tensors is not None and self.tensors.difference > 0
        return self.largest_metric.difference == 0 and self.weights != "differ" and not is_off


class Replay(Status):
    """Updates, recomputed one after the other."""

    run: str
    start: str
    """Checkpoint, or what PPO began with."""
    start_step: int
    """Updates behind it."""
    updates: tuple[UpdateReplay, ...]
    """In order; the last one was asked for."""
    is_same: bool
    """Whether nothing differs in any."""
    first_different: int | None
    """First update that differs: later ones follow from it."""
    largest_metric_difference: float
    """Over all updates."""
    largest_weight_difference: float | None
    """Over all updates; null where weights differ and no checkpoint tells how much."""

    @classmethod
    def of(cls, run: str, start: str, start_step: int, updates: tuple[UpdateReplay, ...]) -> "Replay":
        """Of one update or more."""
        different = [one.update for one in updates if not one.is_same]
        return cls(
            run=run,
            start=start,
            start_step=start_step,
            updates=updates,
            is_same=not different,
            first_different=different[0] if different else None,
            largest_metric_difference=max(one.largest_metric.difference for one in updates),
            largest_weight_difference=_largest_of_weights(updates),
        )


def _largest_of_weights(updates: tuple[UpdateReplay, ...]) -> float | None:
    known = [_weight_difference(one) for one in updates]
    return None if None in known else max(number for number in known if number is not None)


def _weight_difference(one: UpdateReplay) -> float | None:
    if one.tensors is not None:
        return one.tensors.difference
    return 0.0 if one.weights == "same" else None


def compare_metrics(
    recorded: Mapping[str, float | None], recomputed: Mapping[str, float | None]
) -> dict[str, Compared]:
    """Every name of either side, in order."""
    return {
        name: Compared(
            recorded=_finite(recorded.get(name)),
            recomputed=_finite(recomputed.get(name)),
            difference=_difference(recorded, recomputed, name),
        )
        for name in sorted(recorded.keys() | recomputed.keys())
    }


def _difference(recorded: Mapping[str, float | None], recomputed: Mapping[str, float | None], name: str) -> float:
    if name not in recorded or name not in recomputed:
        return math.inf
    one, other = _finite(recorded[name]), _finite(recomputed[name])
    if one is None or other is None:
        return 0.0 if one is other else math.inf
    return abs(one - other)


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def compare_weights(recorded_hash: str, recomputed_hash: str) -> WeightsVerdict:
    """By their hashes; an empty one was not recorded."""
    if not recorded_hash:
        return "not recorded"
    return "same" if recorded_hash == recomputed_hash else "differ"


def compare_tensors(
    kept: Mapping[str, npt.NDArray[Any]], recomputed: Mapping[str, npt.NDArray[Any]]
) -> LargestDifference:
    """The tensor that is furthest off, in its own units; infinitely far where a side lacks it or its shape differs."""
    largest = LargestDifference(name="", difference=0.0)
    for name in sorted(kept.keys() | recomputed.keys()):
        size = _distance(kept.get(name), recomputed.get(name))
        if size > largest.difference:
            largest = LargestDifference(name=name, difference=size)
    return largest


def _distance(one: npt.NDArray[Any] | None, other: npt.NDArray[Any] | None) -> float:
    if one is None or other is None or one.shape != other.shape:
        return math.inf
    with np.errstate(invalid="ignore"):
        apart = np.asarray(np.abs(one.astype(np.float64) - other.astype(np.float64)))
    apart[(one == other) | (np.isnan(one) & np.isnan(other))] = 0.0  # infinities of one sign, too
    return float(np.nan_to_num(apart, nan=math.inf, posinf=math.inf).max(initial=0.0))
