"""A connection that must ask soon: whoever opens one and sends no whole request is hung up on.

The server answers a bounded number of connections at once. uvicorn waits for a request as long as its client likes, so
that without this a few dozen connections that say nothing, for which no token is needed, would shut everybody else out.
Served by `deploy/control/server.py`; how long a body may take is said in `deploy/control/guard.py`.
"""

import asyncio
from typing import Final

from uvicorn.protocols.http.h11_impl import H11Protocol

REQUEST_TIMEOUT_S: Final = 10.0
"""Longest time from a connection, or from the answer before, until the headers of a request are there."""


class ImpatientProtocol(H11Protocol):
    """One connection."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody has connected."""
        super().connection_made(transport)
        self._wait()

    def on_response_complete(self) -> None:
        """A request was answered; another one may come."""
        super().on_response_complete()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._forget()
        super().connection_lost(exc)

    def _wait(self) -> None:
        self._forget()
        self._deadline = self.loop.call_later(REQUEST_TIMEOUT_S, self._hang_up)

    def _forget(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _hang_up(self) -> None:
        """Unless a request is being answered."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:  # None until the first request, whatever its annotation says
            self.transport.close()
