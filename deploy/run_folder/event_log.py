"""What an operator wants to read: members that were lost, replaced, resized; one line each, in events.jsonl and on the
terminal.
"""

import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from common.errors import DataError
from common.pool_actions import Note
from deploy.ppo.recorder import append_json

QUIET = frozenset({"active", "control"})
"""Events that are written down and not shown: a good start is no news, and what an order does is told by itself."""


class EventLog:
    """Appends to `events.jsonl`; safe to use from several threads.

    Args:
        folder: of the run.
        console: where events are shown, above the progress bar.
        count: told the kind of each, for metrics.
    """

    def __init__(self, folder: Path, console: Console, *, count: Callable[[str], None]) -> None:
        self._count = count
        self._path = folder / "events.jsonl"
        self._console = console
        self._lock = threading.Lock()

    def write(self, event: str, text: str, slot: str = "") -> None:
        """One event."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        with self._lock:
            try:
                append_json(self._path, {"time": now, "event": event, "slot": slot, "text": text})
            except DataError as error:  # a full disk must not end what it is told of
                self._console.print(f"[dim]{now[11:19]}[/] {escape(str(error))}", highlight=False)
        self._count(event)
        if event not in QUIET:
            self._console.print(f"[dim]{now[11:19]}[/] {escape(text)}", highlight=False)

    def note(self, note: Note) -> None:
        """An event of a pool."""
        self.write(note.event, note.text, note.slot)
