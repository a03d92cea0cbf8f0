"""Adds up wall seconds by phase, until somebody takes them; safe to use from several threads."""

import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager


class Stopwatch:
    """Seconds by phase since they were last taken."""

    def __init__(self) -> None:
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()
        self._running: tuple[str, float] | None = None
        self._told: Callable[[str, float, float], None] | None = None

    def tell(self, told: Callable[[str, float, float], None]) -> None:
        """Name who hears of every phase that ends: its name, start and end by `time.perf_counter`."""
        self._told = told

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time what happens inside."""
        start = time.perf_counter()
        self._running = (name, start)
        try:
            yield
        finally:
            self._running, end = None, time.perf_counter()
            self.add({name: end - start})
            if self._told is not None:
                self._told(name, start, end)

    def running(self) -> tuple[str, float] | None:
        """The phase that is being timed, and its seconds so far."""
        running = self._running
        return None if running is None else (running[0], time.perf_counter() - running[1])

    def add(self, seconds: Mapping[str, float]) -> None:
        """Add what others measured."""
        with self._lock:
            for name, value in seconds.items():
                self._seconds[name] = self._seconds.get(name, 0.0) + value

    def take(self) -> dict[str, float]:
        """All seconds so far; counting starts anew."""
        with self._lock:
            taken, self._seconds = self._seconds, {}
        return taken
