"""The OpenAPI document of the control channel: what a route may refuse, and who may use it."""

from typing import Any, Final

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from deploy.control.run_status import Problem

TITLE: Final = "Mini-ChatGPT control channel"
VERSION: Final = "1"
DESCRIPTION: Final = """Watch a run and steer it while it lasts.

What is refused is answered with a Problem: what was got, what is legal, what to change. Bound to loopback, reading
needs no token; bound elsewhere, everything but /healthz needs one. Changing the run always needs the steering token.
Settings are numbers within bounds: nothing that is sent here names code, a file or an address."""

REFUSALS: Final = {
    400: "The request is no HTTP that this server understands, or its body was cut short.",
    401: "No token where one is needed, or a wrong one.",
    403: "The token may only read, or a web page of another origin asks.",
    408: "The body did not come in time.",
    409: "The run cannot do this now.",
    413: "The body is too large.",
    421: "The Host header is no name of this server.",
    422: "The request is not legal; the message says what is.",
    429: "Too many requests from this address; Retry-After says when to come again.",
    503: "The run is ending, is not ready, or too many calls wait for it.",
    504: "The run has not answered in time.",
}
OF_ALL: Final = (400, 401, 403, 408, 413, 421, 429)
OF_READS: Final = (*OF_ALL, 409, 422, 503, 504)
SCHEMES: Final = {
    "steer": {"type": "http", "scheme": "bearer", "description": "From control.token, or control.token_env."},
    "read": {"type": "http", "scheme": "bearer", "description": "From read.token, or control.read_token_env."},
}


def refusals(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """What FastAPI wants to hear of them."""
    return {status: {"model": Problem, "description": REFUSALS[status]} for status in sorted(statuses)}


def who(*, steers: bool) -> dict[str, Any]:
    """For `openapi_extra`: the tokens with which a route may be used; {} is none."""
    return {"security": [{"steer": []}] if steers else [{}, {"read": []}, {"steer": []}]}


def document(app: FastAPI) -> dict[str, Any]:
    """The whole document."""
    found = get_openapi(title=TITLE, version=VERSION, description=DESCRIPTION, routes=app.routes)
    components = found.setdefault("components", {})
    components["securitySchemes"] = SCHEMES
    for unused in ("HTTPValidationError", "ValidationError"):  # FastAPI's own; ours is Problem
        components.get("schemas", {}).pop(unused, None)
    return found
