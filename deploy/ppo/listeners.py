"""Who hears of each line of metrics.jsonl and evaluations.jsonl once it is written: guard rails, then trackers."""

from collections.abc import Mapping, Sequence
from typing import Any

from deploy.guards.rails import GuardRails
from deploy.tracking.trackers import Trackers


class Listeners:
    """Hands lines on.

    Args:
        guards: guard rails of learning.
        trackers: TensorBoard and Weights & Biases.
    """

    def __init__(self, guards: GuardRails, trackers: Trackers) -> None:
        self._guards = guards
        self._trackers = trackers

    def updated(self, row: Mapping[str, Any], samples: Sequence[Mapping[str, Any]]) -> None:
        """An update's line of metrics.jsonl, and its lines of samples.jsonl."""
        self._guards.updated(row)
        self._trackers.record(row, samples)

    def evaluated(self, row: Mapping[str, Any]) -> None:
        """An evaluation's line of evaluations.jsonl."""
        self._guards.evaluated(row)
        self._trackers.evaluated(row)
