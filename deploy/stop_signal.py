"""How a run is asked to end: Ctrl-C, SIGTERM, or `minichatgpt stop`. Asking ends nothing: whoever works looks here."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from common.errors import RunStopped
from deploy.exit_codes import INTERRUPTED, TERMINATED


@dataclass(frozen=True, slots=True)
class _Request:
    reason: str
    exit_code: int
    at: float


class StopSignal:
    """Says whether the run shall end. Safe to use from any thread and from a signal handler.

    It holds no lock: a handler runs in the middle of the main thread's code, which may hold that very lock. Appending
    to a list is atomic.
    """

    def __init__(self) -> None:
        self._requests: list[_Request] = []
        self._interrupts: list[float] = []

    def request(self, reason: str, exit_code: int) -> None:
        """Ask the run to end; the first reason stands."""
        self._requests.append(_Request(reason, exit_code, time.monotonic()))

    def interrupt(self) -> None:
        """Ctrl-C: ask the run to end the first time, end it the second time.

        Raises:
            KeyboardInterrupt: it is the second time.
        """
        self._interrupts.append(time.monotonic())
        if len(self._interrupts) > 1:
            raise KeyboardInterrupt
        self.request("Ctrl-C", INTERRUPTED)

    @property
    def requested(self) -> bool:
        """Whether somebody asked."""
        return bool(self._requests)

    @property
    def reason(self) -> str | None:
        """Who asked first; None if nobody did."""
        return self._requests[0].reason if self._requests else None

    @property
    def exit_code(self) -> int:
        """Exit code that belongs to the reason; 0 if nobody asked."""
        return self._requests[0].exit_code if self._requests else 0

    def seconds_since(self) -> float:
        """Seconds since somebody asked first; 0 if nobody did."""
        return time.monotonic() - self._requests[0].at if self._requests else 0.0

    def raise_if_requested(self) -> None:
        """Raise RunStopped if somebody asked."""
        if self._requests:
            first = self._requests[0]
            raise RunStopped(
                f"stopped ({first.reason}); finished stages are kept, and the same command goes on from there",
                reason=first.reason,
                exit_code=first.exit_code,
            )


@contextmanager
def handle_signals(stop: StopSignal) -> Iterator[None]:
    """Let SIGINT and SIGTERM ask for the end; a second SIGINT raises KeyboardInterrupt at once.

    May be entered again inside of itself, for libraries put handlers of their own in its place, as Ray does in
    `ray.init`. Each leaves the handlers as it found them. Outside of the main thread, where Python delivers no signals,
    it does nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_interrupt(number: int, frame: FrameType | None) -> None:
        stop.interrupt()

    def on_terminate(number: int, frame: FrameType | None) -> None:
        stop.request("SIGTERM", TERMINATED)

    before = {
        signal.SIGINT: signal.signal(signal.SIGINT, on_interrupt),
        signal.SIGTERM: signal.signal(signal.SIGTERM, on_terminate),
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            # A handler that is not Python's shows as None and cannot be put back.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
