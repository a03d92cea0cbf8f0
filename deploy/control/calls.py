"""Calls of a run that may hang, made from a server that must not: each in a thread, each with a deadline.

    route (event loop) ──ask──▶ Calls ──▶ a daemon thread ──▶ the run, or its files
          ▲                      │ looks every 10 ms: done? too late? ending?
          └──── answer, or error ┘

A run that does not answer costs a thread, never the server. Used by the routes of `deploy/control/app.py`.
"""

import asyncio
import threading
import time
from collections.abc import Callable
from typing import Any, Final, Generic, TypeVar

from starlette.exceptions import HTTPException

from common.errors import MiniChatGPTError, PhaseTimeoutError, RunEndingError

CALL_TIMEOUT_S: Final = 20.0
"""Longest time that the run may take to answer a call."""
MAX_CALLS: Final = 16
"""Calls that may wait for the run at once."""
POLL_S: Final = 0.01

T = TypeVar("T")


class _Call(threading.Thread, Generic[T]):
    """One call of the run in a thread of its own, which does not keep the process alive.

    An error that is none of ours goes where those of threads go, to the driver's log, and leaves no result.
    """

    def __init__(self, call: Callable[[], T]) -> None:
        super().__init__(name="control-call", daemon=True)
        self._call = call
        self.results: list[T] = []
        self.error: MiniChatGPTError | None = None

    def run(self) -> None:
        """Call, and keep how it ended."""
        try:
            self.results.append(self._call())
        except MiniChatGPTError as error:
            self.error = error


class Calls:
    """Calls of one thing that may hang.

    Args:
        ending: set when the server is about to end; who waits then is told so.
        timeout_s: longest time that one may take.
    """

    def __init__(self, ending: threading.Event, timeout_s: float = CALL_TIMEOUT_S) -> None:
        self._ending = ending
        self._timeout_s = timeout_s
        self._running: list[_Call[Any]] = []

    async def ask(self, call: Callable[[], T]) -> T:
        """Call, without blocking the server.

        Raises:
            MiniChatGPTError: as the run raised it; PhaseTimeoutError if it did not answer in time; RunEndingError if
                the server is about to end.
            HTTPException: too many calls wait already, or the call failed for no reason of ours.
        """
        self._running = [running for running in self._running if running.is_alive()]
        if len(self._running) >= MAX_CALLS:
            raise HTTPException(503, f"{MAX_CALLS} calls wait for the run already; try again later")
        asked = _Call(call)
        self._running.append(asked)
        asked.start()
        await self.until(
            lambda: not asked.is_alive(), self._timeout_s, f"the run has not answered within {self._timeout_s:g} s"
        )
        if asked.error is not None:
            raise asked.error
        if not asked.results:
            raise HTTPException(500, "internal error; the driver's log has it")
        return asked.results[0]

    async def until(self, is_done: Callable[[], bool], timeout_s: float, otherwise: str) -> None:
        """Look until it is done. Looking, not being told, leaves nothing behind that a late end could trip over."""
        deadline = time.monotonic() + timeout_s
        while not is_done():
            if self._ending.is_set():
                raise RunEndingError("the run is ending")
            if time.monotonic() > deadline:
                raise PhaseTimeoutError(otherwise)
            await asyncio.sleep(POLL_S)
