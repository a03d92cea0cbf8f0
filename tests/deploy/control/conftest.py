"""A run that is nothing but its controls, served over real HTTP on loopback."""

import functools
import os
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import httpx2
import pytest
from prometheus_client import CollectorRegistry

from common.control_config import ControlConfig
from common.errors import ConfigError
from deploy.control.limits import Limits, Rate
from deploy.control.run_status import (
    CheckpointInfo,
    LearnerStatus,
    MemberStatus,
    PoolStatus,
    RunStatus,
    SettingsRequest,
    SettingsStatus,
    WaitStatus,
)
from deploy.control.server import serve_control
from deploy.control.tokens import read_token
from deploy.run_folder.address import announce
from deploy.run_folder.lock import run_lock

NO_LIMITS = Limits(requests=Rate(1e9, 10**9), orders=Rate(1e9, 10**9), refusals=Rate(1e9, 10**9))
"""For tests of other things."""
CHECKPOINT = CheckpointInfo(step=7, url="file:///runs/tiny/checkpoints/step_000007", age_s=0.5)


@dataclass
class PlainRun:
    """Two pools that have the size they are told; at least two rollout workers. Implements `Controls`."""

    pid: int = 1
    workers: int = 2
    replicas: int = 1
    active: int | None = None
    """Rollout workers that are active; None: all."""
    stopped: str | None = None
    pause_state: str = "none"
    settings: SettingsStatus = field(
        default_factory=lambda: SettingsStatus(temperature=1.0, learning_rate=0.001, kl_target=6.0)
    )
    calls: list[object] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    """What the server says of orders."""
    counts: list[tuple[str, int]] = field(default_factory=list)
    """Route and status of what it has answered."""
    future: Future[CheckpointInfo] = field(default_factory=Future)
    failure: BaseException | None = None
    """Raised by every call."""
    asleep: threading.Event | None = None
    """Every call waits for it."""

    def status(self) -> RunStatus:
        self._enter("status")
        return RunStatus(
            run="tiny",
            pid=self.pid,
            started_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
            stage="ppo",
            stopping=self.stopped,
            step=3,
            updates=12,
            lineage=1,
            phase="collect",
            phase_s=1.5,
            ledger={"dispatched": 128, "trained": 96, "dropped": {"reward_timeout": 2}, "in_flight": 30},
            newest_checkpoint=CHECKPOINT,
            pools={"rollout": self._pool("worker", self.workers), "reward": self._pool("replica", self.replicas)},
            learner=LearnerStatus(state="active", pid=4711, restarts=1),
            pause=self.pause_state,
            settings=self.settings,
            tokens_per_s=1497.2,
            waits=WaitStatus(
                update_s=12.0, learner_wait_fraction=0.4, worker_idle_fraction=0.25, reward_idle_fraction=0.9
            ),
        )

    def scale(self, *, rollout_workers: int | None, reward_replicas: int | None) -> RunStatus:
        self._enter(("scale", rollout_workers, reward_replicas))
        if rollout_workers is not None and rollout_workers < 2:
            raise ConfigError(
                f"rollout_workers={rollout_workers} is less than rollout.min_workers=2; ask for 2 or more"
            )
        self.workers = rollout_workers or self.workers
        self.replicas = reward_replicas or self.replicas
        return self.status()

    def checkpoint(self) -> Future[CheckpointInfo]:
        self._enter("checkpoint")
        return self.future

    def pause(self, reason: str) -> RunStatus:
        self._enter(("pause", reason))
        self.pause_state = "asked"
        return self.status()

    def resume(self) -> RunStatus:
        self._enter("resume")
        self.pause_state = "none"
        return self.status()

    def change(self, wanted: SettingsRequest) -> RunStatus:
        self._enter(("change", wanted))
        if wanted.kl_coef is not None:
            raise ConfigError("kl_coef is of a fixed coefficient, and this run's is adaptive")
        self.settings = self.settings.model_copy(update=wanted.model_dump(exclude_none=True))
        return self.status()

    def stop(self, reason: str) -> None:
        self._enter(("stop", reason))
        self.stopped = reason

    def _enter(self, call: object) -> None:
        self.calls.append(call)
        if self.asleep is not None:
            self.asleep.wait(60)
        if self.failure is not None:
            raise self.failure

    def _pool(self, name: str, target: int) -> PoolStatus:
        active = target if self.active is None or name == "replica" else min(self.active, target)
        members = [
            MemberStatus(
                slot=f"{name}-{i}",
                state="active" if i < active else "syncing",
                node="node-a",
                pid=100 + i,
                weights="1:3",
                calls_held=i,
                restarts=0,
                heartbeat_age_s=0.25,
                weights_age_s=63.0 if i < active and name == "worker" else None,
                tokens_per_s=1234.4 if i < active and name == "worker" else None,
                busy_fraction=0.75 if i < active else None,
                rss_bytes=512_000_000 if i < active else None,
                last_error=None if i < active else "died\x1b[2J in generate [/] twice",
            )
            for i in range(target)
        ]
        return PoolStatus(target=target, active=active, members=tuple(members), queued=3, queue_age_s=1.5)


@dataclass
class Served:
    """A served run and how to reach it."""

    run: PlainRun
    folder: Path
    url: str
    token: str
    read_token: str

    @property
    def bearer(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.token}"}

    def ask(self, method: str, path: str, **how: object) -> httpx2.Response:
        """Ask with the right token, and other headers if `headers` gives them."""
        headers = self.bearer | how.pop("headers", {})
        return httpx2.request(method, self.url + path, headers=headers, trust_env=False, timeout=30, **how)


Serve = Callable[..., AbstractContextManager[Served]]


@contextmanager
def serving(
    folder: Path,
    run: PlainRun | None = None,
    *,
    call_timeout_s: float = 20.0,
    limits: Limits = NO_LIMITS,
    environ: Mapping[str, str] = os.environ,
    **settings: object,
) -> Iterator[Served]:
    plain = run or PlainRun()
    with ExitStack() as stack:
        stack.enter_context(run_lock(folder))
        stack.enter_context(announce(folder))
        config = ControlConfig(**settings)
        url = stack.enter_context(
            serve_control(
                config,
                plain,
                folder,
                registry=CollectorRegistry(),
                note=lambda text: plain.notes.append(text),
                count=lambda route, status: plain.counts.append((route, status)),
                environ=environ,
                limits=limits,
                call_timeout_s=call_timeout_s,
            )
        )
        assert url is not None
        token = read_token(folder) if config.token_env is None else environ[config.token_env]
        reading = folder / "read.token"
        yield Served(plain, folder, url, token, reading.read_text().strip() if reading.exists() else "")


@pytest.fixture
def serve(tmp_path: Path) -> Serve:
    """Serves a PlainRun from runs/tiny of the test's folder while a block runs."""
    return functools.partial(serving, tmp_path / "runs" / "tiny")


@pytest.fixture(scope="session")
def one_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    with serving(tmp_path_factory.mktemp("shared") / "runs" / "tiny") as answering:
        yield answering


@pytest.fixture
def served(one_server: Served) -> Served:
    """A PlainRun as new, on a server that is shared: starting and ending one takes longer than most tests."""
    one_server.run.__init__()
    return one_server


@pytest.fixture(scope="session")
def plain_run() -> type[PlainRun]:
    return PlainRun
