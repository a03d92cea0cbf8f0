"""The control channel: what a run can be asked over HTTP while it runs. `deploy/control/server.py` serves it.

| request | answer |
|---|---|
| GET / | the page, which asks for the rest; its files need no token |
| GET /healthz | that the driver answers; needs no token |
| GET /readyz | that the run does its work, or 503 and why it does not |
| GET /metrics | what Prometheus scrapes; docs/metrics.md |
| GET /openapi.json | all of this, for programs |
| GET /v1/run, /v1/workers, /v1/ledger | RunStatus, or that part of it |
| GET /v1/updates, /v1/samples, /v1/events | what the run has written down |
| POST /v1/run/scale | ScaleRequest to RunStatus, with the new targets |
| POST /v1/run/pause, /v1/run/resume | RunStatus; it stands still after the running update |
| PATCH /v1/run/settings | SettingsRequest to RunStatus; in force from the next update on |
| POST /v1/run/checkpoint | CheckpointRequest to CheckpointInfo, once it is written and verified |
| POST /v1/run/stop | StopRequest to RunStatus; the run ends by itself |

    request ─▶ control_guard (control_access, control_limits) ─▶ control_read  ─▶ control_calls ─▶ the run, its files
                                                              └▶ control_steer ─▶ control_calls ─▶ the run

Whatever is refused is answered with a Problem: what was got, what is legal, what to change.
"""

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.routing import APIRoute
from prometheus_client.registry import Collector
from starlette.exceptions import HTTPException

from common.errors import ConfigError, MiniChatGPTError, PhaseTimeoutError, RunEndingError
from deploy.control.access import Access
from deploy.control.calls import CALL_TIMEOUT_S, Calls
from deploy.control.guard import Guard
from deploy.control.limits import Limits
from deploy.control.openapi import OF_ALL, OF_READS, document, refusals, who
from deploy.control.page_routes import PAGE_PATHS, add_page
from deploy.control.read import ReadRoutes
from deploy.control.run_controls import Controls
from deploy.control.run_status import Problem
from deploy.control.steer import SteerRoutes
from deploy.run_folder.history import RunHistory

LIMITS = Limits()


def build_app(
    controls: Controls,
    *,
    access: Access,
    ending: threading.Event,
    registry: Collector,
    history: RunHistory,
    note: Callable[[str], None],
    count: Callable[[str, int], None],
    limits: Limits = LIMITS,
    call_timeout_s: float = CALL_TIMEOUT_S,
) -> Guard:
    """The guarded ASGI application.

    Args:
        controls: the run.
        access: who may ask for what.
        ending: set when the server is about to end.
        registry: what GET /metrics shows.
        history: what the run has written down.
        note: told of every order.
        count: told route and status of every answer.
        limits: how often one address may ask.
        call_timeout_s: longest time that the run may take to answer.
    """
    asking, reading, ordering = (Calls(ending, call_timeout_s) for _ in range(3))  # who looks holds up no order
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    _add_reads(app, ReadRoutes(controls, asking, history, reading, registry))
    _add_orders(app, SteerRoutes(controls, ordering, note))
    add_page(app)
    described = document(app)

    async def openapi() -> JSONResponse:
        return JSONResponse(described)

    app.add_api_route("/openapi.json", openapi, methods=["GET"], include_in_schema=False)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(MiniChatGPTError, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)
    routes = frozenset(_paths(app))
    return Guard(app, access=access, limits=limits, routes=routes, count=count)


def _add_reads(app: FastAPI, api: ReadRoutes) -> None:
    app.add_api_route(
        "/healthz", api.healthz, methods=["GET"], responses=refusals(*OF_ALL), openapi_extra={"security": []}
    )
    app.add_api_route(
        "/metrics",
        api.metrics,
        methods=["GET"],
        response_model=None,
        response_class=PlainTextResponse,
        responses=refusals(*OF_ALL),
        openapi_extra=who(steers=False),
    )
    for path, endpoint in (
        ("/readyz", api.readyz),
        ("/v1/run", api.status),
        ("/v1/workers", api.workers),
        ("/v1/ledger", api.ledger),
        ("/v1/updates", api.updates),
        ("/v1/samples", api.samples),
        ("/v1/events", api.events),
    ):
        app.add_api_route(
            path, endpoint, methods=["GET"], responses=refusals(*OF_READS), openapi_extra=who(steers=False)
        )


def _add_orders(app: FastAPI, api: SteerRoutes) -> None:
    for method, path, endpoint in (
        ("POST", "/v1/run/scale", api.scale),
        ("POST", "/v1/run/pause", api.pause),
        ("POST", "/v1/run/resume", api.resume),
        ("PATCH", "/v1/run/settings", api.change),
        ("POST", "/v1/run/checkpoint", api.checkpoint),
        ("POST", "/v1/run/stop", api.stop),
    ):
        app.add_api_route(
            path, endpoint, methods=[method], responses=refusals(*OF_READS), openapi_extra=who(steers=True)
        )


def _paths(app: FastAPI) -> dict[str, str]:
    """The method of each path, in order."""
    return {route.path: min(route.methods or ()) for route in app.routes if isinstance(route, APIRoute)}


def _problem(status: int, error: str, message: str, headers: Mapping[str, str] | None = None) -> JSONResponse:
    return JSONResponse(Problem(error=error, message=message).model_dump(), status, headers)


async def _not_valid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError), "registered for it"
    return _problem(422, "invalid request", "\n".join(_explain(error.errors())))


async def _refused(request: Request, error: Exception) -> JSONResponse:
    match error:
        case ConfigError():
            status = 422
        case PhaseTimeoutError():
            status = 504
        case RunEndingError():
            status = 503
        case _:
            status = 409
    return _problem(status, type(error).__name__, str(error))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException), "registered for it"
    message = str(error.detail)
    if error.status_code in (404, 405):
        routes = {path: method for path, method in _paths(request.app).items() if path not in PAGE_PATHS}
        there = ", ".join(f"{method} {path}" for path, method in routes.items())
        message = f"{request.method} {request.url.path}: {message}; there are {there}"
    return _problem(error.status_code, "refused", message, error.headers)


async def _internal_error(request: Request, error: Exception) -> JSONResponse:
    return _problem(500, "internal error", "internal error; the driver's log has it")


def _explain(problems: Sequence[Any]) -> list[str]:
    lines = []
    for problem in problems:
        place = ".".join(str(part) for part in problem["loc"][1:]) or "body"
        if problem["type"] == "json_invalid":
            lines.append(f"the body is no JSON: {problem['ctx']['error']} at character {place}")
            continue
        if problem["type"] in ("model_attributes_type", "missing"):
            lines.append("the body must be a JSON object, with the header Content-Type: application/json")
            continue
        message = problem["msg"].removeprefix("Value error, ")
        got = problem["input"]
        shown = "" if problem["type"] == "value_error" else f" (got {str(got)[:100]!r})"
        lines.append(f"{place}: {message}{shown}")
    return lines
