"""Weights that came before a request named them: fetched and verified beside the work, loaded by nobody yet.

It belongs to one worker (actors/worker.py), which brings weights in one thread and takes them in another; it neither
fetches nor verifies by itself, and knows no model.

A worker holds at most two calls. The one that waits was sent, as a rule, when the call before the running one ended,
and names the weights that were the newest then. So, while a call runs, two versions may still be named: the newest of
when it began, and the newest of all. Those two are kept and none between, however many are published meanwhile:

    a call begins     all go but the newest, which the waiting call names if not what the worker holds
    weights come      the oldest stays beside those that come

A call that names others all the same, as one that was sent to a lost worker before, fetches them in its pause. It finds
them: the driver, which owns the buffer, holds its reference until the call is answered.
"""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from common.flat_parameters import Buffer
from common.records import Identity, WeightsHandle


@dataclass(frozen=True, slots=True)
class Arrived:
    """Weights that were fetched and verified, and are in no model yet."""

    identity: Identity
    hash: int
    buffer: Buffer
    seconds: Mapping[str, float]
    """By phase."""

    @property
    def key(self) -> tuple[Identity, int]:
        """What tells them from others."""
        return self.identity, self.hash


class WeightsAhead:
    """At most two buffers, the one on its way included, beside that on which the model may lie.

    One thread brings, another takes.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._arrived: list[Arrived] = []
        """Oldest first."""
        self._on_its_way: tuple[Identity, int] | None = None
        """Identity and hash."""

    def bring(self, handle: WeightsHandle, arrive: Callable[[WeightsHandle], Arrived]) -> Arrived:
        """Have the handle's weights here; `arrive` fetches and verifies them, and what it raises is raised."""
        with self._changed:
            del self._arrived[1:]  # before others come, so that no third buffer is kept alive meanwhile
            self._on_its_way = (handle.identity, handle.hash)
        try:
            arrived = arrive(handle)
            with self._changed:
                self._arrived.append(arrived)
        finally:
            with self._changed:
                self._on_its_way = None
                self._changed.notify_all()
        return arrived

    def take(self, handle: WeightsHandle) -> Arrived | None:
        """A call begins that needs the handle's weights: they are handed out, waited for where they are on their way,
        or None.
        """
        key = (handle.identity, handle.hash)
        with self._changed:
            self._changed.wait_for(lambda: self._find(key) is not None or self._on_its_way != key)
            found = self._find(key)
            self._arrived = [one for one in self._arrived[-1:] if one is not found]
            return found

    def pass_by(self) -> None:
        """A call begins that needs none: the worker holds its weights."""
        with self._changed:
            del self._arrived[:-1]

    def _find(self, key: tuple[Identity, int]) -> Arrived | None:
        return next((one for one in self._arrived if one.key == key), None)
