"""Serves the control channel from a thread of the driver, and leaves the tokens where the command line finds them."""

import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final

import uvicorn
from prometheus_client import CollectorRegistry

from common.control_config import ControlConfig
from common.errors import ConfigError, ControlError
from deploy.control.access import Access
from deploy.control.app import LIMITS, build_app
from deploy.control.calls import CALL_TIMEOUT_S
from deploy.control.connection import ImpatientProtocol
from deploy.control.guard import Guard
from deploy.control.limits import Limits
from deploy.control.run_controls import Controls
from deploy.control.tokens import run_tokens
from deploy.monitoring.run_label import OfRun
from deploy.monitoring.scrape_target import scrape_target
from deploy.run_folder.address import announce
from deploy.run_folder.history import RunHistory

START_TIMEOUT_S: Final = 10.0
END_TIMEOUT_S: Final = 5.0
MAX_CONNECTIONS: Final = 64


@contextmanager
def serve_control(
    config: ControlConfig,
    controls: Controls,
    folder: Path,
    *,
    registry: CollectorRegistry,
    note: Callable[[str], None] = lambda text: None,
    count: Callable[[str, int], None] = lambda route, status: None,
    environ: Mapping[str, str] = os.environ,
    limits: Limits = LIMITS,
    call_timeout_s: float = CALL_TIMEOUT_S,
) -> Iterator[str | None]:
    """Serve while the block runs; yields the URL, or None where it is off.

    The URL is in run.json, the tokens in control.token and read.token, readable by their owner only, unless they come
    from the environment, and where Prometheus scrapes in `.targets` beside the folder. All are gone afterwards. The URL
    is one for this machine, whatever the bound address.

    Args:
        config: where to listen, and to whom.
        controls: the run.
        folder: of the run.
        registry: what GET /metrics shows, with the run's name on each sample.
        note: told of every order that changes the run.
        count: told route and status of every answer.
        environ: where tokens may be.
        limits: how often one address may ask.
        call_timeout_s: longest time that the run may take to answer a call.

    Raises:
        ConfigError: the port is taken, or a token is not where the configuration says.
        ControlError: the server does not start.
    """
    if not config.enabled:
        yield None
        return
    ending = threading.Event()
    with ExitStack() as stack:
        listening = stack.enter_context(_listen(config))
        url = f"http://{_local(config.host)}:{listening.getsockname()[1]}"
        tokens = stack.enter_context(run_tokens(config, folder, environ))
        app = build_app(
            controls,
            access=Access.of(config, tokens.steer, tokens.read),
            ending=ending,
            registry=OfRun(registry, folder.name),
            history=RunHistory(folder),
            note=note,
            count=count,
            limits=limits,
            call_timeout_s=call_timeout_s,
        )
        stack.enter_context(_running(listening, app, ending))
        stack.enter_context(announce(folder, control_url=url))
        stack.enter_context(scrape_target(folder, config.host, listening.getsockname()[1]))
        yield url


def _local(host: str) -> str:
    """How this machine reaches it."""
    reached = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{reached}]" if ":" in reached else reached


def _listen(config: ControlConfig) -> socket.socket:
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    try:
        return socket.create_server((config.host, config.port), family=family)
    except OSError as error:
        raise ConfigError(
            f"control cannot bind {config.host}:{config.port}: {error.strerror}; set control.port = 0 for a free one"
        ) from error


@contextmanager
def _running(listening: socket.socket, app: Guard, ending: threading.Event) -> Iterator[None]:
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            loop="asyncio",
            http=ImpatientProtocol,
            ws="none",
            lifespan="off",
            interface="asgi3",
            log_config=None,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_graceful_shutdown=2,
        )
    )
    thread = threading.Thread(target=server.run, args=([listening],), name="control", daemon=True)
    thread.start()
    try:
        _await_start(server, thread)
        yield
    finally:
        ending.set()
        server.should_exit = True
        thread.join(END_TIMEOUT_S)


def _await_start(server: uvicorn.Server, thread: threading.Thread) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while not server.started:
        if not thread.is_alive() or time.monotonic() > deadline:
            raise ControlError(
                f"the control channel has not started within {START_TIMEOUT_S:.0f} s; the log says why; "
                "control.enabled = false runs without it"
            )
        time.sleep(0.01)
