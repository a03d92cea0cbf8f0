"""What a viewer knows of a live run: how it is now, and what it has done, asked for anew a little at a time.

Used by `minichatgpt top`; the page does the same in `deploy/page/history.js`.
"""

import statistics
from dataclasses import dataclass
from typing import Final, Protocol

from deploy.control.run_status import RunStatus
from deploy.run_folder.history import EventRow, Events, SampleRow, Samples, UpdateRow, Updates

MOST: Final = 1000
"""Updates and events that are kept."""
NUM_SAMPLES: Final = 24
RECENT: Final = 5
"""Updates whose time foretells that of the next ones."""


class Source(Protocol):
    """Whoever can be asked; implemented by `deploy.control.client.RunClient`."""

    def status(self) -> RunStatus:
        """The run as it is now."""

    def updates(self, *, after: int) -> Updates:
        """Updates later than that one."""

    def events(self, *, after: int) -> Events:
        """Events after the one of that number."""

    def samples(self, *, limit: int) -> Samples:
        """The newest samples."""


@dataclass(frozen=True, slots=True)
class View:
    """A run at one moment."""

    status: RunStatus
    updates: tuple[UpdateRow, ...] = ()
    """Oldest first."""
    events: tuple[EventRow, ...] = ()
    """Oldest first."""
    samples: tuple[SampleRow, ...] = ()
    """As RunHistory gives them."""

    @property
    def remaining_s(self) -> float | None:
        """Seconds until the last update, if the next ones take as long as the last few; None where that is unknown."""
        status = self.status
        took = [row.seconds["total"] for row in self.updates[-RECENT:] if "total" in row.seconds]
        if not took or status.step is None or status.updates is None or status.pause != "none" or status.stopping:
            return None
        return (status.updates - status.step) * statistics.median(took)

    def extreme(self, kind: str) -> SampleRow | None:
        """The best or the worst sample of the newest update that has any."""
        return next((row for row in self.samples if row.kind == kind), None)


class Watcher:
    """Keeps what was seen, and asks for what is new.

    Args:
        source: the run.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._lineage: int | None = None
        self._updates: tuple[UpdateRow, ...] = ()
        self._events: tuple[EventRow, ...] = ()
        self._samples: tuple[SampleRow, ...] = ()

    def look(self) -> View:
        """The run as it is; raises ControlError if it does not answer."""
        status = self._source.status()
        has_rows_of_the_dead = bool(self._updates) and status.step is not None and status.step < self._updates[-1].step
        if status.lineage is not None and (status.lineage != self._lineage or has_rows_of_the_dead):
            self._lineage, self._updates = status.lineage, ()  # it went back: rows may come again
        after = self._updates[-1].step if self._updates else 0
        if (status.step is None and not self._updates) or (status.step or 0) > after:
            new = self._source.updates(after=after).updates
            self._updates = (*self._updates, *new)[-MOST:]
            if new:
                self._samples = self._source.samples(limit=NUM_SAMPLES).samples
        number = self._events[-1].number if self._events else -1
        self._events = (*self._events, *self._source.events(after=number).events)[-MOST:]
        return View(status, self._updates, self._events, self._samples)
