"""The control channel: what a run can be asked over HTTP while it runs. `deploy/control_server.py` serves it.

| request | answer |
|---|---|
| GET /healthz | that the driver answers; needs no token |
| GET /metrics | what Prometheus scrapes; docs/metrics.md |
| GET /v1/run | RunStatus |
| POST /v1/run/scale | ScaleRequest to RunStatus, with the new targets |
| POST /v1/run/checkpoint | CheckpointRequest to CheckpointInfo, once it is written and verified |
| POST /v1/run/stop | StopRequest to RunStatus; the run ends by itself |

Whatever is refused is answered with a Problem: what was got, what is legal, what to change. Every answer comes within a
deadline: a run that does not answer costs a thread, never the server.
"""

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from typing import Any, Final, Generic, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.exceptions import HTTPException

from common.errors import ConfigError, ControlError, MiniChatGPTError, PhaseTimeoutError
from deploy.control_guard import Guard
from deploy.page_routes import add_page
from deploy.run_controls import Controls
from deploy.run_history import Events, RunHistory, Samples, Updates
from deploy.run_status import (
    CheckpointInfo,
    CheckpointRequest,
    Health,
    Problem,
    RunStatus,
    ScaleRequest,
    SettingsRequest,
    StopRequest,
)

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


class ControlApi:
    """The endpoints.

    Args:
        controls: the run.
        ending: set when the server is about to end; who waits then is told so.
        registry: what GET /metrics shows.
        history: what the run has written down.
        call_timeout_s: longest time that the run may take to answer.
    """

    def __init__(
        self,
        controls: Controls,
        ending: threading.Event,
        registry: CollectorRegistry,
        history: RunHistory,
        call_timeout_s: float = CALL_TIMEOUT_S,
    ) -> None:
        self._history = history
        self._controls = controls
        self._ending = ending
        self._registry = registry
        self._call_timeout_s = call_timeout_s
        self._calls: list[_Call[Any]] = []

    async def healthz(self) -> Health:
        """The driver answers."""
        return Health()

    async def metrics(self, request: Request) -> Response:
        """All metrics, in the format that the scraper asks for."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._registry), headers={"Content-Type": content_type})

    async def status(self) -> RunStatus:
        """The run as it is now."""
        return await self._ask(self._controls.status)

    async def updates(self, after: int = 0) -> Updates:
        """Updates later than that one."""
        return await self._ask(lambda: self._history.updates(after=after))

    async def events(self, after: int = -1) -> Events:
        """Events after the one of that number."""
        return await self._ask(lambda: self._history.events(after=after))

    async def samples(self, limit: int = 20) -> Samples:
        """The newest samples."""
        return await self._ask(lambda: self._history.samples(limit=limit))

    async def pause(self) -> RunStatus:
        """Stand still once the running update is done."""
        return await self._ask(lambda: self._controls.pause("control channel"))

    async def resume(self) -> RunStatus:
        """Go on."""
        return await self._ask(self._controls.resume)

    async def change(self, wanted: SettingsRequest) -> RunStatus:
        """Change settings from the next update on."""
        return await self._ask(lambda: self._controls.change(wanted))

    async def scale(self, wanted: ScaleRequest) -> RunStatus:
        """Set how many rollout workers and reward replicas there shall be."""
        return await self._ask(
            lambda: self._controls.scale(rollout_workers=wanted.rollout_workers, reward_replicas=wanted.reward_replicas)
        )

    async def checkpoint(self, wanted: CheckpointRequest | None = None) -> CheckpointInfo:
        """Have a checkpoint written, and wait until it is verified."""
        wait_s = (wanted or CheckpointRequest()).wait_s
        future: Future[CheckpointInfo] = await self._ask(self._controls.checkpoint)
        await self._until(
            future.done, wait_s, f"the checkpoint is not written and verified within {wait_s:g} s; it goes on"
        )
        try:
            return future.result(timeout=0)
        except CancelledError as error:
            raise ControlError("the run gave the checkpoint up; ask again") from error

    async def stop(self, wanted: StopRequest | None = None) -> RunStatus:
        """Ask the run to end; it finishes or abandons its step, writes a checkpoint and goes."""
        await self._ask(lambda: self._controls.stop((wanted or StopRequest()).reason))
        return await self.status()

    async def _ask(self, call: Callable[[], T]) -> T:
        """Call the run, without blocking the server.

        Raises:
            MiniChatGPTError: as the run raised it; PhaseTimeoutError if it did not answer in time.
            HTTPException: too many calls wait already, or the call failed for no reason of ours.
        """
        self._calls = [running for running in self._calls if running.is_alive()]
        if len(self._calls) >= MAX_CALLS:
            raise HTTPException(503, f"{MAX_CALLS} calls wait for the run already; try again later")
        asked = _Call(call)
        self._calls.append(asked)
        asked.start()
        await self._until(
            lambda: not asked.is_alive(),
            self._call_timeout_s,
            f"the run has not answered within {self._call_timeout_s:g} s",
        )
        if asked.error is not None:
            raise asked.error
        if not asked.results:
            raise HTTPException(500, "internal error; the driver's log has it")
        return asked.results[0]

    async def _until(self, is_done: Callable[[], bool], timeout_s: float, otherwise: str) -> None:
        """Look until it is done. Looking, not being told, leaves nothing behind that a late end could trip over."""
        deadline = time.monotonic() + timeout_s
        while not is_done():
            if self._ending.is_set():
                raise HTTPException(503, "the run is ending")
            if time.monotonic() > deadline:
                raise PhaseTimeoutError(otherwise)
            await asyncio.sleep(POLL_S)


def build_app(
    controls: Controls,
    *,
    token: str,
    ending: threading.Event,
    registry: CollectorRegistry,
    history: RunHistory,
    call_timeout_s: float = CALL_TIMEOUT_S,
) -> Guard:
    """The guarded ASGI application.

    Args:
        controls: the run.
        token: that every request but those to open paths must bear.
        ending: set when the server is about to end.
        registry: what GET /metrics shows.
        history: what the run has written down.
        call_timeout_s: longest time that the run may take to answer.
    """
    api = ControlApi(controls, ending, registry, history, call_timeout_s)
    app = FastAPI(title="Mini-ChatGPT", openapi_url=None, docs_url=None, redoc_url=None)
    app.add_api_route("/healthz", api.healthz, methods=["GET"])
    app.add_api_route("/metrics", api.metrics, methods=["GET"])
    app.add_api_route("/v1/run", api.status, methods=["GET"])
    app.add_api_route("/v1/updates", api.updates, methods=["GET"])
    app.add_api_route("/v1/events", api.events, methods=["GET"])
    app.add_api_route("/v1/samples", api.samples, methods=["GET"])
    app.add_api_route("/v1/run/pause", api.pause, methods=["POST"])
    app.add_api_route("/v1/run/resume", api.resume, methods=["POST"])
    app.add_api_route("/v1/run/settings", api.change, methods=["PATCH"])
    app.add_api_route("/v1/run/scale", api.scale, methods=["POST"])
    app.add_api_route("/v1/run/checkpoint", api.checkpoint, methods=["POST"])
    app.add_api_route("/v1/run/stop", api.stop, methods=["POST"])
    add_page(app)
    app.add_exception_handler(RequestValidationError, _not_valid)
    app.add_exception_handler(MiniChatGPTError, _refused)
    app.add_exception_handler(HTTPException, _http_error)
    app.add_exception_handler(Exception, _internal_error)
    return Guard(app, token=token)


def _problem(status: int, error: str, message: str) -> JSONResponse:
    return JSONResponse(Problem(error=error, message=message).model_dump(), status)


async def _not_valid(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError), "registered for it"
    return _problem(422, "invalid request", "\n".join(_explain(error.errors())))


async def _refused(request: Request, error: Exception) -> JSONResponse:
    match error:
        case ConfigError():
            status = 422
        case PhaseTimeoutError():
            status = 504
        case _:
            status = 409
    return _problem(status, type(error).__name__, str(error))


async def _http_error(request: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException), "registered for it"
    message = str(error.detail)
    if error.status_code in (404, 405):
        there = ", ".join(f"{sorted(route.methods)[0]} {route.path}" for route in request.app.routes)
        message = f"{request.method} {request.url.path}: {message}; there are {there}"
    return _problem(error.status_code, "refused", message)


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
