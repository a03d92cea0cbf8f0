"""What every request to the control channel must pass before anything looks at it: host, token, size, time.

Host first: a web page that a name server points at this machine (DNS rebinding) must not even learn whether its token
is right. Everything that is not on the list of open paths needs the token, paths that do not exist included.
"""

import asyncio
import hmac
import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from fastapi.responses import JSONResponse

from deploy.page_routes import PAGE_PATHS
from deploy.run_status import Problem

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LOOPBACK_HOST: Final = re.compile(rb"(localhost|127\.0\.0\.1|\[::1\])(:[0-9]{1,5})?", re.IGNORECASE)
OPEN_PATHS: Final = frozenset({"/healthz"}) | PAGE_PATHS
MAX_BODY_BYTES: Final = 16 * 1024
BODY_TIMEOUT_S: Final = 10.0
"""Longest time in which a body must have arrived."""


class _Refused(Exception):  # noqa: N818 an answer, no fault
    def __init__(self, status: int, error: str, message: str) -> None:
        super().__init__(message)
        self.status, self.error, self.message = status, error, message


class Guard:
    """ASGI middleware that answers what is not allowed, and passes on the rest with its body read.

    Args:
        app: gets what is allowed.
        token: that a request must bear.
    """

    def __init__(self, app: App, *, token: str) -> None:
        self._app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request."""
        assert scope["type"] == "http", "the server speaks no other protocol"
        try:
            self._check_host(scope)
            self._check_token(scope)
            body = await self._body(scope, receive)
        except _Refused as refused:
            await _respond(refused, scope, receive, send)
            return
        await self._app(scope, _replay(body, receive), send)

    @staticmethod
    def _check_host(scope: Message) -> None:
        hosts = _headers(scope, b"host")
        if len(hosts) != 1 or not LOOPBACK_HOST.fullmatch(hosts[0]):
            got = ", ".join(_shown(host) for host in hosts) or "none"
            raise _Refused(
                421, "wrong host", f"Host is {got}; legal are localhost, 127.0.0.1 and [::1], with or without a port"
            )

    def _check_token(self, scope: Message) -> None:
        if scope["path"] in OPEN_PATHS:
            return
        given = _headers(scope, b"authorization")
        if len(given) != 1:
            raise _Refused(
                401,
                "no token",
                f"got {len(given)} Authorization headers; send one, `Authorization: Bearer TOKEN`, with the token from "
                "control.token of the run folder",
            )
        if not hmac.compare_digest(given[0], self._expected):
            raise _Refused(
                401,
                "wrong token",
                "the Authorization header does not hold this run's token; read it from control.token of the run "
                "folder: each start of a run makes a new one",
            )

    @staticmethod
    async def _body(scope: Message, receive: Receive) -> bytes:
        too_large = _Refused(413, "body too large", f"the body is larger than {MAX_BODY_BYTES} bytes; send less")
        for length in _headers(scope, b"content-length"):
            if int(length) > MAX_BODY_BYTES:  # the server has checked that it is a number
                raise too_large
        body = b""
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                is_more = True
                while is_more:
                    message = await receive()
                    if message["type"] != "http.request":
                        raise _Refused(400, "body cut short", "the connection ended before the body did")
                    body += message.get("body", b"")
                    is_more = message.get("more_body", False)
                    if len(body) > MAX_BODY_BYTES:
                        raise too_large
        except TimeoutError as error:
            raise _Refused(
                408, "body too slow", f"{len(body)} bytes came within {BODY_TIMEOUT_S:.0f} s; send the body at once"
            ) from error
        return body


def _headers(scope: Message, name: bytes) -> list[bytes]:
    """Values of a header; ASGI gives names in lower case."""
    return [value for key, value in scope["headers"] if key == name]


def _shown(header: bytes) -> str:
    return repr(header[:100].decode("latin-1"))


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives the body first, then what the server says."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


async def _respond(refused: _Refused, scope: Message, receive: Receive, send: Send) -> None:
    headers = {"Connection": "close"} | ({"WWW-Authenticate": "Bearer"} if refused.status == 401 else {})
    problem = Problem(error=refused.error, message=refused.message)
    await JSONResponse(problem.model_dump(), refused.status, headers)(scope, receive, send)
