"""A connection that must ask soon, one of few from its address: who asks too little or opens too many is hung up on.

The server answers a bounded number of connections at once. uvicorn waits for a request as long as its client likes, so
that without this a few dozen connections that say nothing, for which no token is needed, would shut everybody else out;
and whoever opens them anew as they are closed, from one address, would do so still.
Served by `deploy/control/server.py`; how long a body may take is said in `deploy/control/guard.py`.
"""

import asyncio
from typing import Final

from uvicorn.protocols.http.h11_impl import H11Protocol

from deploy.control.limits import client_of
from deploy.control.run_status import Problem

CONNECTIONS_OF_ONE: Final = 24
"""Connections from one address at once. A browser opens six; on loopback page, scraper and commands are one address."""

REQUEST_TIMEOUT_S: Final = 10.0
"""Longest time from a connection, or from the answer before, until the headers of a request are there."""


class ImpatientProtocol(H11Protocol):
    """One connection."""

    _deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody has connected."""
        super().connection_made(transport)
        if self._number_from_here() > CONNECTIONS_OF_ONE:
            transport.write(_TOO_MANY)
            transport.close()
        else:
            self._wait()

    def on_response_complete(self) -> None:
        """A request was answered; another one may come."""
        super().on_response_complete()
        self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is over."""
        self._forget()
        super().connection_lost(exc)

    def _number_from_here(self) -> int:
        """Connections from the address of this one, itself among them."""
        here = _client(self)
        return sum(_client(other) == here for other in self.connections)

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


def _client(protocol: object) -> str:
    """Whose connection it is."""
    assert isinstance(protocol, H11Protocol), "the server is told to speak no other"
    return client_of(protocol.client[0] if protocol.client else "unknown")


def _too_many() -> bytes:
    """The answer, whole: no request is read for it."""
    body = Problem(
        error="too many",
        message=f"{CONNECTIONS_OF_ONE} connections from this address are open already; close some, or wait",
    ).model_dump_json()
    return (
        "HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
        f"Content-Length: {len(body)}\r\n\r\n{body}"
    ).encode()


_TOO_MANY: Final = _too_many()
