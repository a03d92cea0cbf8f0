"""Pure arithmetic of supervision: the ledger of samples, restart budgets, back-off, and the limits of a pool.

Nothing here waits, sleeps or reads a clock: time comes in as an argument, what to do comes out as a return value.
"""

import math
from collections import deque
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from common.errors import LedgerError
from common.placement_config import PoolPlacement

MAX_BACKOFF_S = 30.0


@dataclass(slots=True)
class Ledger:
    """Where every dispatched sample is. At every moment

    dispatched = trained + rolled_back + dropped + buffered + in_flight.
    """

    dispatched: int = 0
    trained: int = 0
    """Along the ancestry of the current weights: each sample once."""
    rolled_back: int = 0
    """Work of weights that are no more: trained after the checkpoint that a crash went back to, or not yet trained."""
    buffered: int = 0
    """Generated and judged, not yet trained on."""
    in_flight: int = 0
    """Being generated or judged."""
    dropped: dict[str, int] = field(default_factory=dict)
    """By reason."""
    duplicates: int = 0
    """Answers that came a second time; outside of the equation, for the first one was counted."""

    @property
    def live(self) -> int:
        """Samples dispatched and not given up: what admission counts."""
        return self.trained + self.buffered + self.in_flight

    def dispatch(self, samples: int) -> None:
        """Samples were asked for."""
        self.dispatched += samples
        self.in_flight += samples

    def buffer(self, samples: int) -> None:
        """Samples came back, judged."""
        self.in_flight -= samples
        self.buffered += samples

    def lose(self, samples: int) -> None:
        """Judged samples were lost before they could be trained on, and are generated again."""
        self.buffered -= samples
        self.in_flight += samples

    def train(self, samples: int) -> None:
        """Samples were trained on."""
        self.buffered -= samples
        self.trained += samples

    def drop(self, reason: str, samples: int, *, buffered: bool = False) -> None:
        """Samples are given up: out of those in flight, or out of the buffered ones."""
        if buffered:
            self.buffered -= samples
        else:
            self.in_flight -= samples
        self.dropped[reason] = self.dropped.get(reason, 0) + samples

    def roll_back(self, trained: int) -> None:
        """Go back to weights that `trained` samples are behind: all later work is of a dead lineage."""
        self.rolled_back += self.trained - trained + self.buffered + self.in_flight
        self.trained, self.buffered, self.in_flight = trained, 0, 0

    @property
    def mismatch(self) -> int:
        """Samples dispatched less the sum of the fates: 0, or there is a bug."""
        dropped = sum(self.dropped.values())
        return self.dispatched - (self.trained + self.rolled_back + dropped + self.buffered + self.in_flight)

    def check(self) -> None:
        """Raise LedgerError if a sample is lost or counted twice."""
        smallest = min(self.trained, self.rolled_back, self.buffered, self.in_flight, *self.dropped.values(), 0)
        if self.mismatch or smallest < 0:
            booked = self.dispatched - self.mismatch
            raise LedgerError(f"dispatched={self.dispatched} but {booked} accounted for: {self}")

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)

    @classmethod
    def of(cls, saved: Mapping[str, Any]) -> "Ledger":
        """What `as_dict` gave; raises LedgerError if it does not add up."""
        ledger = cls(**{**saved, "dropped": dict(saved["dropped"])})
        ledger.check()
        return ledger


@dataclass(frozen=True, slots=True)
class Limits:
    """What a pool is held to; times in seconds."""

    start_s: float = 180.0
    """From when a node has room."""
    room_s: float = 900.0
    """Until a node has room."""
    sync_s: float = 120.0
    request_s: float = 600.0
    drain_s: float = 60.0
    heartbeat_every_s: float = 2.0
    heartbeat_s: float = 20.0
    """inf: no heartbeats, for members that are no processes."""
    budget_s: float = math.inf
    """For one task, all attempts included."""
    max_attempts: int = 3
    max_restarts: int = 3
    restart_window_s: float = 600.0
    min_members: int = 1
    depth: int = 2
    """Calls that a member holds at once: one being worked on, one waiting, so that it never idles between them."""
    binds_at_once: bool = False
    """Whether all that members have room for is handed out; else the last tasks wait for who is done first."""
    prefetches: bool = False
    """Whether members are told of new weights at once, to fetch them beside work; else they meet them on requests."""

    @classmethod
    def of(
        cls, placement: PoolPlacement, *, min_members: int, budget_s: float = math.inf, are_processes: bool = True
    ) -> "Limits":
        """The limits that a configuration names; what is no process cannot be killed, so it has no deadlines."""
        return cls(
            start_s=placement.start_timeout_s if are_processes else math.inf,
            room_s=placement.room_timeout_s if are_processes else math.inf,
            sync_s=placement.sync_timeout_s if are_processes else math.inf,
            request_s=placement.request_timeout_s if are_processes else math.inf,
            drain_s=placement.drain_timeout_s if are_processes else math.inf,
            heartbeat_every_s=placement.heartbeat_every_s,
            heartbeat_s=placement.heartbeat_timeout_s if are_processes else math.inf,
            budget_s=budget_s if are_processes else math.inf,
            max_attempts=placement.max_attempts,
            max_restarts=placement.max_restarts,
            restart_window_s=placement.restart_window_s,
            min_members=min_members,
        )


class RestartBudget:
    """How often something may be restarted within a sliding window, and after which pause.

    Time alone forgives nothing: restarts leave the window only once there was progress after them. Else what never
    gets going, slowly, would be started again for ever.

    Args:
        max_restarts: restarts within the window.
        window_s: its length in seconds.
    """

    def __init__(self, max_restarts: int, window_s: float) -> None:
        self.max_restarts = max_restarts
        self.window_s = window_s
        self.total = 0
        """Restarts since the beginning."""
        self._times: deque[float] = deque()

    def take(self, now: float, *, progressed: bool = True) -> float | None:
        """Seconds to wait before the restart (0 for the first, then 1, 2, 4 … up to 30), or None: spent.

        Args:
            now: the time.
            progressed: whether anything came of the last start.
        """
        while progressed and self._times and now - self._times[0] > self.window_s:
            self._times.popleft()
        if len(self._times) >= self.max_restarts:
            return None
        pause = 0.0 if not self._times else min(MAX_BACKOFF_S, 2.0 ** (len(self._times) - 1))
        self._times.append(now)
        self.total += 1
        return pause
