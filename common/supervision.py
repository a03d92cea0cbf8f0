"""Pure machines on which both pools stand: who gets the next call, which calls are late, and the ledger of samples.

Nothing here waits, sleeps or reads a clock: time comes in as an argument, what to do comes out as a return value.
"""

from collections import deque
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

from common.errors import LedgerError


@dataclass(slots=True)
class Ledger:
    """Where every dispatched sample is. At every moment

    dispatched = trained + rolled_back + dropped + buffered + in_flight.
    """

    dispatched: int = 0
    trained: int = 0
    rolled_back: int = 0
    buffered: int = 0
    """Generated and judged, not yet trained on."""
    in_flight: int = 0
    """Being generated or judged."""
    dropped: dict[str, int] = field(default_factory=dict)
    """By reason."""
    duplicates: int = 0
    """Answers that came a second time; outside of the equation, for the first one was counted."""

    def dispatch(self, samples: int) -> None:
        """Samples were asked for."""
        self.dispatched += samples
        self.in_flight += samples

    def buffer(self, samples: int) -> None:
        """Samples came back, judged."""
        self.in_flight -= samples
        self.buffered += samples

    def train(self, samples: int) -> None:
        """Samples were trained on."""
        self.buffered -= samples
        self.trained += samples

    def check(self) -> None:
        """Raise LedgerError if a sample is lost or counted twice."""
        dropped = sum(self.dropped.values())
        booked = self.trained + self.rolled_back + dropped + self.buffered + self.in_flight
        if self.dispatched != booked or min(self.trained, self.buffered, self.in_flight) < 0:
            raise LedgerError(f"dispatched={self.dispatched} but {booked} accounted for: {self}")

    def as_dict(self) -> dict[str, int | dict[str, int]]:
        """For summaries, as JSON."""
        return {
            "dispatched": self.dispatched,
            "trained": self.trained,
            "rolled_back": self.rolled_back,
            "dropped": dict(self.dropped),
            "buffered": self.buffered,
            "in_flight": self.in_flight,
            "duplicates": self.duplicates,
        }


@dataclass(frozen=True, slots=True)
class Assignment:
    """Give this task to this member."""

    member: str
    task: Hashable


@dataclass(frozen=True, slots=True)
class Late:
    """A member that has held a task past its deadline."""

    member: str
    task: Hashable
    held_s: float


class Dispatcher:
    """Least-loaded dispatch of tasks to members, first come first served, with a deadline for each.

    Args:
        members: names of the pool's members.
        depth: tasks that a member may hold at once; 2 keeps it busy while its last result travels.
        deadline_s: longest time a member may hold a task.
    """

    def __init__(self, members: Sequence[str], *, depth: int, deadline_s: float) -> None:
        if not members:
            raise ValueError("a pool needs at least one member")
        self.depth = depth
        self.deadline_s = deadline_s
        self.queue: deque[Hashable] = deque()
        self.held: dict[str, dict[Hashable, float]] = {name: {} for name in members}

    @property
    def members(self) -> list[str]:
        """Names, in the order in which they joined."""
        return list(self.held)

    def submit(self, task: Hashable) -> None:
        """Queue a task."""
        self.queue.append(task)

    def assign(self, now: float) -> list[Assignment]:
        """Hand queued tasks to the least loaded members that have room; ties go to the earlier member."""
        assignments = []
        while self.queue:
            member = min(self.held, key=lambda name: len(self.held[name]))
            if len(self.held[member]) >= self.depth:
                break
            task = self.queue.popleft()
            self.held[member][task] = now
            assignments.append(Assignment(member, task))
        return assignments

    def finish(self, task: Hashable) -> str | None:
        """A result came; returns who held the task, or None if nobody did (a late duplicate)."""
        for member, tasks in self.held.items():
            if tasks.pop(task, None) is not None:
                return member
        return None

    def late(self, now: float) -> list[Late]:
        """Tasks past their deadline."""
        return [
            Late(member, task, now - since)
            for member, tasks in self.held.items()
            for task, since in tasks.items()
            if now - since > self.deadline_s
        ]

    def num_held(self) -> int:
        """Tasks that members hold."""
        return sum(len(tasks) for tasks in self.held.values())
