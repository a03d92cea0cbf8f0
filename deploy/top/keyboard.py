"""Keys as they are pressed, without Enter. Leaves the terminal as it was, however the block ends."""

import os
import select
import signal
import sys
import termios
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from deploy.exit_codes import TERMINATED


class Keyboard:
    """Where keys come from.

    Args:
        descriptor: of the terminal; None: there is none, and no key ever comes.
    """

    def __init__(self, descriptor: int | None) -> None:
        self._descriptor = descriptor

    @property
    def is_there(self) -> bool:
        """Whether keys can come."""
        return self._descriptor is not None

    def read(self, timeout_s: float) -> str | None:
        """The next key; None if none was pressed in time, or the terminal is gone."""
        if self._descriptor is None:
            time.sleep(timeout_s)
            return None
        ready, _, _ = select.select([self._descriptor], [], [], timeout_s)
        if not ready:
            return None
        key = os.read(self._descriptor, 1)
        if not key:  # its end
            self._descriptor = None
        return key.decode("ascii", errors="replace") or None


@contextmanager
def keyboard() -> Iterator[Keyboard]:
    """Keys of stdin, if it is a terminal, while the block runs. Ctrl-C still interrupts; SIGTERM ends the block."""
    if not sys.stdin.isatty():
        yield Keyboard(None)
        return
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    on_term = signal.signal(signal.SIGTERM, _leave)
    try:
        tty.setcbreak(descriptor)
        yield Keyboard(descriptor)
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)
        signal.signal(signal.SIGTERM, on_term)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(TERMINATED)
