"""Runs that never ran: statuses and run folders as the page may meet them, for tests and for looking at the page."""

import contextlib
import json
import math
import random
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from common.errors import ConfigError, ControlError
from deploy.control.run_status import (
    AlarmStatus,
    CheckpointInfo,
    LearnerStatus,
    MemberStatus,
    PoolStatus,
    RunStatus,
    SettingsRequest,
    SettingsStatus,
    StageProgress,
    WaitStatus,
)
from deploy.control.waiting import advice

NOW = datetime.now(UTC)
UPDATE_S = 6.0
HOSTILE = (
    '\x1b[2J<script>document.title = "taken"</script><img src=x onerror="document.title=\'taken\'"> '
    "\"quotes\" & 'more' <b>bold</b> ]]> </p></main> {{ 7 * 7 }} ${7 * 7}"
)
LONG = "the film is long and " * 400


def status(*, step: int | None = 37, workers: int = 4, **changes: object) -> RunStatus:
    """Of a run of PPO in the midst of collecting."""
    waits = WaitStatus(
        update_s=UPDATE_S, learner_wait_fraction=0.62, worker_idle_fraction=0.4, reward_idle_fraction=0.81
    )
    facts = {
        "run": "demo",
        "pid": 4242,
        "started_at": NOW - timedelta(minutes=7),
        "stage": "ppo",
        "step": step,
        "updates": 200,
        "lineage": 1,
        "phase": "collect",
        "phase_s": 1.4,
        "ledger": {
            "dispatched": 9728,
            "trained": 9472,
            "rolled_back": 0,
            "dropped": {"reward_timeout": 3, "not_finite": 1},
            "buffered": 64,
            "in_flight": 188,
            "duplicates": 2,
        },
        "newest_checkpoint": CheckpointInfo(step=30, url="file:///runs/demo/checkpoints/step_000030", age_s=44.0),
        "pools": {"rollout": pool("worker", workers), "reward": pool("replica", 2)},
        "learner": LearnerStatus(state="active", pid=4711, restarts=0),
        "settings": SettingsStatus(temperature=0.85, learning_rate=5e-4, kl_target=6.0),
        "tokens_per_s": 1193.0,
        "waits": waits.model_copy(update={"advice": advice(waits)}),
    }
    return RunStatus(**{**facts, **changes})


def pool(name: str, size: int, *, dead: int = 0) -> PoolStatus:
    """Members that work, and some that are being replaced."""
    members = [
        MemberStatus(
            slot=f"{name}-{i}",
            state="active",
            node="a1b2c3d4",
            pid=5000 + i,
            weights="1.37",
            weights_age_s=3.4 + i / 7,
            calls_held=1 + i % 2,
            heartbeat_age_s=0.3,
            busy_fraction=0.6 - 0.03 * (i % 5) if name == "worker" else 0.19,
            tokens_per_s=412.0 - 9 * i if name == "worker" else None,
            rss_bytes=410_000_000 + 3_000_000 * i,
        )
        for i in range(size)
    ]
    for i in range(dead):
        error = f"rollout {name}-{i} died in generate: its process ended without a word: killed from outside (SIGKILL)."
        members[i] = MemberStatus(
            slot=f"{name}-{i}", state="starting", restarts=1, last_error=error, heartbeat_age_s=None
        )
    return PoolStatus(
        target=size, active=size - dead, members=tuple(members), queued=3 if name == "replica" else 0, queue_age_s=0.4
    )


def write_history(
    folder: Path, *, steps: int, text: str = "a fine film , warm and funny .", target: float = 6.0
) -> None:
    """metrics.jsonl, samples.jsonl and events.jsonl of a run that learns."""
    chance = random.Random(1)
    folder.mkdir(parents=True, exist_ok=True)
    begin = NOW - timedelta(seconds=UPDATE_S * steps)
    with (folder / "metrics.jsonl").open("w") as metrics, (folder / "samples.jsonl").open("w") as samples:
        for step in range(1, steps + 1):
            metrics.write(json.dumps(update_row(step, begin, chance, target)) + "\n")
            for kind, sign in (("best", 1), ("worst", -1)):
                for n in range(3):
                    row = {"kind": kind, "step": step, "draw_index": step * 8 + n, "prompt": "i went to see this",
                           "response": text, "score": sign * (2.1 - 0.2 * n), "kl_seq_sum": 7.0 + n}  # fmt: skip
                    samples.write(json.dumps(row) + "\n")
    events = [
        (0, "active", "worker-0", "worker-0 takes work"),
        (0, "active", "worker-1", "worker-1 takes work"),
        (50, "scale", "", "scale to 4 rollout workers"),
        (61, "active", "worker-2", "worker-2 takes work"),
        (62, "active", "worker-3", "worker-3 takes work"),
        (110, "settings", "", "from the next update on: kl_target 4 to 6"),
        (150, "lost", "worker-1", "worker-1 died in generate: killed from outside (SIGKILL, the kernel's out-of-memory "
         "killer) or crashed.\n  | one line of its log, and a few words more\n  | and the last"),
        (151, "restart", "worker-1", "worker-1 starts again (1 of 3 within 10 min)"),
        (190, "guard_alarm", "", "kl: 11.3 nats per response is above 10 for 3 updates; the learning rate is halved"),
    ]  # fmt: skip
    with (folder / "events.jsonl").open("w") as file:
        for at, event, slot, said in events:
            time = (begin + timedelta(seconds=at)).isoformat(timespec="milliseconds")
            file.write(json.dumps({"time": time, "event": event, "slot": slot, "text": said}) + "\n")


def update_row(step: int, begin: datetime, chance: random.Random, target: float) -> dict:
    kl = 7.5 * (1 - math.exp(-step / 14)) + chance.gauss(0, 0.35)
    return {
        "step": step,
        "identity": f"1.{step}",
        "time": (begin + timedelta(seconds=UPDATE_S * step)).isoformat(timespec="milliseconds"),
        "settings": {"temperature": 0.85, "learning_rate": 5e-4, "kl_target": 4.0 if step <= 18 else target},
        "metrics": {
            "score_mean": -0.4 + 1.8 * (1 - math.exp(-step / 16)) + chance.gauss(0, 0.08),
            "score_std": 0.62 + chance.gauss(0, 0.03),
            "kl_seq_sum": kl,
            "kl_token_mean": kl / 28,
            "kl_coef": 0.05,
            "response_tokens": 7168,
        },
        "seconds": {"collect": 3.7, "update": 2.1, "total": UPDATE_S + chance.gauss(0, 0.3) + (3 if step == 26 else 0)},
        "ledger": {},
    }


def scenes() -> dict[str, tuple[RunStatus, dict]]:
    """Status and arguments of the history, by name."""
    alarm = AlarmStatus(
        guard="kl",
        since_step=34,
        text="11.3 nats per response for 3 updates, at most 10 are legal; the learning rate is halved",
    )
    wounded = {"rollout": pool("worker", 4, dead=1), "reward": pool("replica", 2)}
    return {
        "collect": (status(), {"steps": 37}),
        "paused": (status(pause="paused", phase="paused", phase_s=73.0), {"steps": 37}),
        "alarm": (status(alarms=(alarm,), rollbacks=1, phase="update"), {"steps": 37}),
        "dead": (status(pools=wounded), {"steps": 37}),
        "long": (status(step=400, updates=400), {"steps": 400, "text": LONG}),
        "hostile": (status(), {"steps": 37, "text": HOSTILE}),
        "sixteen": (status(workers=16), {"steps": 37}),
        "first": (status(step=0, waits=None, tokens_per_s=None), {"steps": 0}),
        "pretrain": (
            RunStatus(run="demo", pid=1, started_at=NOW - timedelta(seconds=40), stage="pretrain"),
            {"steps": 0},
        ),
        "sft": (
            RunStatus(
                run="demo",
                pid=1,
                started_at=NOW - timedelta(seconds=40),
                stage="sft",
                progress=StageProgress(step=30, total=120, message="loss 3.61", left_s=90.0),
            ),
            {"steps": 0},
        ),
        "thousands": (status(step=2500, updates=4000), {"steps": 2500}),
        "stopping": (status(stopping="minichatgpt stop"), {"steps": 37}),
    }


@dataclass
class SceneRun:
    """A run that says what it is told to say, and does what it is asked. Implements `Controls`."""

    now: RunStatus = field(default_factory=status)
    calls: list[object] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    counts: list[tuple[str, int]] = field(default_factory=list)
    fails_at: int | None = None
    """Which look at it fails, from 1."""
    looks: int = 0

    def status(self) -> RunStatus:
        self.looks += 1
        if self.looks == self.fails_at:
            raise ControlError("the learner is being replaced")
        return self.now

    def scale(self, *, rollout_workers: int | None, reward_replicas: int | None) -> RunStatus:
        self.calls.append(("scale", rollout_workers, reward_replicas))
        if rollout_workers is not None and rollout_workers < 2:
            raise ConfigError(f"{rollout_workers} rollout workers are fewer than the minimum of 2; ask for more")
        pools = dict(self.now.pools)
        if rollout_workers is not None:
            pools["rollout"] = pool("worker", rollout_workers)
        if reward_replicas is not None:
            pools["reward"] = pool("replica", reward_replicas)
        self.now = self.now.model_copy(update={"pools": pools})
        return self.now

    def pause(self, reason: str) -> RunStatus:
        self.calls.append("pause")
        self.now = self.now.model_copy(update={"pause": "paused"})
        return self.now

    def resume(self) -> RunStatus:
        self.calls.append("resume")
        self.now = self.now.model_copy(update={"pause": "none"})
        return self.now

    def change(self, wanted: SettingsRequest) -> RunStatus:
        self.calls.append(("change", wanted.model_dump(include=wanted.model_fields_set)))
        return self.now

    def checkpoint(self) -> Future[CheckpointInfo]:
        return Future()

    def stop(self, reason: str) -> None:
        self.now = self.now.model_copy(update={"stopping": reason})


Shown = Callable[..., contextlib.AbstractContextManager]


@pytest.fixture
def show_run(serve, tmp_path) -> Shown:
    """Serves a scene while a block runs, with its history in the run folder."""

    @contextlib.contextmanager
    def shown(name: str = "collect", **settings: object) -> Iterator:
        now, history = scenes()[name]
        write_history(tmp_path / "runs" / "tiny", **history)
        with serve(SceneRun(now), **settings) as served:
            yield served

    return shown


@pytest.fixture
def all_scenes() -> dict[str, tuple[RunStatus, dict]]:
    return scenes()


@pytest.fixture
def add_update() -> Callable[[Path, int], None]:
    """Appends one update to a run's metrics.jsonl."""

    def add(folder: Path, step: int, identity: str | None = None) -> None:
        row = update_row(step, NOW, random.Random(step), 6.0)
        with (folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps(row | {"identity": identity or row["identity"]}) + "\n")

    return add


@pytest.fixture
def history_of(tmp_path) -> Callable[..., Path]:
    """Writes a history into a folder of the test, and returns the folder."""

    def write(**history: object) -> Path:
        write_history(tmp_path / "history", **history)
        return tmp_path / "history"

    return write


@pytest.fixture(scope="session")
def chromium() -> Iterator:
    """Debian's browser, without a window."""
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    path = shutil.which("chromium")
    if path is None:
        pytest.skip("chromium is not installed (Debian: apt-get install chromium)")
    with playwright.sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


def give(page, token: str) -> None:
    page.get_by_label("Control token").fill(token)
    page.get_by_role("button", name="Use", exact=True).click()


@pytest.fixture
def give_token() -> Callable[..., None]:
    """Pastes a token into an open page."""
    return give


@pytest.fixture
def open_page(chromium) -> Iterator[Callable]:
    """Opens the page of a served run, and gives it a token; at the end, nothing must have been complained of."""
    opened, said = [], []

    def complain(line) -> None:
        if "net::ERR_" not in line.text and "the server responded with a status of" not in line.text:
            said.append(line.text)

    def go(served, *, token: str | None = "", width: int = 1280):
        page = chromium.new_page(viewport={"width": width, "height": 800})
        opened.append(page)
        page.set_default_timeout(15_000)
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("console", complain)
        page.goto(served.url)
        if token is not None:
            give(page, token or served.token)
        return page

    yield go
    for page in opened:
        page.close()
    assert said == []
