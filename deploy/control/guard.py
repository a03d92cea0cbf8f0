"""What every request to the control channel passes before anything looks at it, and every answer on its way out.

    request ──▶ Access: host, origin, token ──▶ Buckets: how often ──▶ body: size, time ──▶ the app
    answer  ◀── security headers ◀── counted by route and status ◀───────────────────────────┘

ASGI middleware, made by `deploy.control.app.build_app`. It knows no route and no run.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from fastapi.responses import JSONResponse

from deploy.control.access import SAFE_METHODS, Access, Asked, Refused, Who
from deploy.control.limits import Buckets, Limits, client_of, whole_seconds
from deploy.control.run_status import Problem

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

MAX_BODY_BYTES: Final = 16 * 1024
BODY_TIMEOUT_S: Final = 10.0
"""Longest time in which a body must have arrived."""
HEADERS: Final = {
    b"x-content-type-options": b"nosniff",
    b"cache-control": b"no-store",
    b"content-security-policy": b"default-src 'none'; frame-ancestors 'none'",
    b"cross-origin-resource-policy": b"same-origin",
    b"referrer-policy": b"no-referrer",
}
"""Of every answer that does not set its own."""


class Guard:
    """ASGI middleware that answers what is not allowed, and passes on the rest with its body read.

    Args:
        app: gets what is allowed.
        access: who may ask for what.
        limits: how often.
        routes: paths that there are.
        count: told route and status of every answer; the route is `other` where there is none.
        clock: seconds that only grow.
    """

    def __init__(
        self,
        app: App,
        *,
        access: Access,
        limits: Limits,
        routes: frozenset[str],
        count: Callable[[str, int], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._app = app
        self._access = access
        self._routes = routes
        self._count = count
        self._requests, self._orders, self._refusals = (
            Buckets(rate, clock, limits.most_clients) for rate in (limits.requests, limits.orders, limits.refusals)
        )

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Handle one request."""
        assert scope["type"] == "http", "the server speaks no other protocol"
        answer = self._finishing(scope["path"], send)
        try:
            who = self._admit(scope)
            body = await _body(scope, receive)
        except Refused as refused:
            await _respond(refused, scope, receive, answer)
            return
        await self._app(scope, _replay(body, receive), _telling(who, answer))

    def _admit(self, scope: Message) -> Who:
        """Who asks; raises Refused if the request is not allowed, or is one too many."""
        client = client_of((scope.get("client") or ("unknown",))[0])
        asked = Asked(
            method=scope["method"],
            path=scope["path"],
            hosts=_headers(scope, b"host"),
            origins=_headers(scope, b"origin"),
            authorizations=_headers(scope, b"authorization"),
            local_address=(scope.get("server") or ("",))[0],
        )
        try:
            who = self._access.admit(asked)
        except Refused as refused:
            _take(self._refusals, client, f"refused answers ({refused.error})")
            raise
        _take(self._requests, (client, who), "requests")
        if asked.method not in SAFE_METHODS:
            _take(self._orders, client, "calls that change the run")
        return who

    def _finishing(self, path: str, send: Send) -> Send:
        """Adds the headers that are not there, and counts."""
        route = path if path in self._routes else "other"

        async def finish(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message.get("headers", ())}
                added = [(name, value) for name, value in HEADERS.items() if name not in there]
                message["headers"] = [*message.get("headers", ()), *added]
                self._count(route, message["status"])
            await send(message)

        return finish


def _telling(who: Who, send: Send) -> Send:
    """Adds as whom the client was let in, so that the page need not try an order to learn what its token may do."""

    async def tell(message: Message) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message.get("headers", ()), (b"x-minichatgpt-role", who.encode())]
        await send(message)

    return tell


def _take(buckets: Buckets, client: object, what: str) -> None:
    """Raises Refused if there is none to take."""
    if wait_s := buckets.take(client):
        seconds = whole_seconds(wait_s)
        raise Refused(
            429,
            "too many",
            f"too many {what} from this address; try again in {seconds} s",
            {"Retry-After": str(seconds)},
        )


async def _body(scope: Message, receive: Receive) -> bytes:
    too_large = Refused(413, "body too large", f"the body is larger than {MAX_BODY_BYTES} bytes; send less")
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
                    raise Refused(400, "body cut short", "the connection ended before the body did")
                body += message.get("body", b"")
                is_more = message.get("more_body", False)
                if len(body) > MAX_BODY_BYTES:
                    raise too_large
    except TimeoutError as error:
        raise Refused(
            408, "body too slow", f"{len(body)} bytes came within {BODY_TIMEOUT_S:.0f} s; send the body at once"
        ) from error
    return body


def _headers(scope: Message, name: bytes) -> list[bytes]:
    """Values of a header; ASGI gives names in lower case."""
    return [value for key, value in scope["headers"] if key == name]


def _replay(body: bytes, receive: Receive) -> Receive:
    """Gives the body first, then what the server says."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replay() -> Message:
        return pending.pop() if pending else await receive()

    return replay


async def _respond(refused: Refused, scope: Message, receive: Receive, send: Send) -> None:
    headers = {"Connection": "close"} | refused.headers
    if refused.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    problem = Problem(error=refused.error, message=refused.message)
    await JSONResponse(problem.model_dump(), refused.status, headers)(scope, receive, send)
