"""A file of spans and counters in Chrome's trace format, which Perfetto and chrome://tracing open; and its reader.

The array form: one event per line, and the bracket at the end may be missing, so that what a run wrote before it was
killed is a trace too. It is written as it goes and nothing is kept, however long the run.
"""

import json
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from common.errors import DataError

TRACE = "trace.json"
"""Its name in a run folder."""
FLUSH_EVERY_S = 1.0
"""Longest time for which an event is only in memory."""
FIRST_ROWS = ("driver", "learner")
"""Those at the top; the others follow by name."""
_PROCESS = 1
_US = 1e6


class TraceFile:
    """Writes a trace; safe to use from several threads.

    Args:
        path: of the file; what was there is replaced.
        clock: seconds, the same as those of the times that `span` is given.
        told: hears why the trace ends early: the disk takes no more. The run goes on without it.
    """

    def __init__(
        self, path: Path, *, clock: Callable[[], float] = time.perf_counter, told: Callable[[str], None]
    ) -> None:
        self.path = path
        self.clock = clock
        self._told = told
        self._lock = threading.Lock()
        self._rows: dict[str, int] = {}
        self._began = self._flushed_at = clock()
        self._file: TextIO | None = None
        self._is_first = True
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", encoding="utf-8")
        except OSError as error:
            self._give_up(error)
        self._write({"ph": "M", "name": "process_name", "args": {"name": "minichatgpt"}})
        self._write({"ph": "i", "name": "began", "ts": 0, "tid": 0, "s": "g", "args": {"unix_s": time.time()}})

    def __enter__(self) -> "TraceFile":
        """Itself; closed at the end, whatever ends it."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""
        self.close()

    def span(self, row: str, name: str, start: float, end: float, args: Mapping[str, Any]) -> None:
        """Something that took its time, at times of the clock."""
        event = {"ph": "X", "name": name, "ts": self._us(start), "dur": max(0, self._us(end) - self._us(start))}
        with self._lock:
            self._write(event | {"tid": self._row(row), "args": dict(args)})

    def count(self, name: str, values: Mapping[str, float]) -> None:
        """Numbers as they are now; drawn as areas on top of each other."""
        with self._lock:
            self._write({"ph": "C", "name": name, "ts": self._us(self.clock()), "args": dict(values)})

    def close(self) -> None:
        """End the array; nothing is written from here on."""
        with self._lock:
            if self._file is None:
                return
            try:
                self._file.write("\n]\n")
                self._file.close()
            except OSError as error:
                self._give_up(error)
            self._file = None

    def _us(self, at: float) -> int:
        return round((at - self._began) * _US)

    def _row(self, name: str) -> int:
        """Its number, under which the viewer knows it; the first time its name is written too."""
        if name not in self._rows:
            number = self._rows[name] = len(self._rows) + 1
            order = FIRST_ROWS.index(name) if name in FIRST_ROWS else len(FIRST_ROWS) + number
            for what, args in (("thread_name", {"name": name}), ("thread_sort_index", {"sort_index": order})):
                self._write({"ph": "M", "name": what, "tid": number, "args": args})
        return self._rows[name]

    def _write(self, event: Mapping[str, Any]) -> None:
        if self._file is None:
            return
        try:
            self._file.write(("[\n" if self._is_first else ",\n") + json.dumps({"pid": _PROCESS, **event}))
            self._is_first = False
            if (now := self.clock()) - self._flushed_at > FLUSH_EVERY_S:
                self._flushed_at = now
                self._file.flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        self._file = None
        self._told(f"{self.path} cannot be written ({error}); the run goes on without a trace from here")


def read_trace(path: Path) -> list[dict[str, Any]]:
    """Events of a trace, also of one whose end is missing or cut short within a line.

    Raises:
        DataError: it is not there, or is no trace.
    """
    try:
        text = path.read_text(encoding="utf-8", errors="replace").rstrip()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error}); `minichatgpt run CONFIG --trace` writes one") from error
    lines = text.removesuffix("]").split("\n")
    if lines[0].strip() != "[":
        raise DataError(f"{path} is no trace of a run: it must begin with a line `[`")
    events = []
    for number, line in enumerate(lines[1:]):
        if not line.strip():
            continue
        try:
            events.append(json.loads(line.rstrip().removesuffix(",")))
        except json.JSONDecodeError as error:
            if number == len(lines) - 2:
                break  # the run was killed in the midst of it
            raise DataError(f"{path}, line {number + 2} is no event: {error}") from error
    return events
