"""A real run on a real Ray cluster, and somebody who breaks it at a known place by a known process number."""

import io
import itertools
import json
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from rich.console import Console

from common.hashing import file_hash
from deploy.control.run_controls import RunControls
from deploy.control.run_status import RunStatus
from deploy.pipeline import Pipeline
from deploy.run_folder.files import read_json
from deploy.stop_signal import StopSignal
from learner.trajectory_file import read_trajectories

DEADLINE_S = 180.0
"""Of a single wait: far more than anything takes, so that only a hang is an error."""
CALLABLES = Path(__file__).with_name("callables")


def poll(condition: Callable[[], object], *, what: str, deadline_s: float = DEADLINE_S) -> object:
    """Wait until something holds, with an end; returns what held."""
    end = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < end, f"{what}: not within {deadline_s:.0f} s"
        time.sleep(0.02)
    return found


class Watched:
    """A run in this process, seen and steered as the control channel does."""

    def __init__(self, controls: RunControls, folder: Path) -> None:
        self.controls = controls
        self.folder = folder
        self.seen_at: dict[str, float] = {}

    def status(self) -> RunStatus:
        return self.controls.status()

    def await_status(self, condition: Callable[[RunStatus], object], what: str) -> RunStatus:
        """The first status for which something holds."""

        def look() -> RunStatus | None:
            status = self.status()
            return status if status.pools and condition(status) else None

        return poll(look, what=what)

    def await_step(self, step: int) -> RunStatus:
        return self.await_status(lambda s: (s.step or 0) >= step, f"update {step}")

    def member(self, status: RunStatus, slot: str):
        return next(m for pool in status.pools.values() for m in pool.members if m.slot == slot)

    def busy(self, slot: str):
        """A member that holds work right now."""
        status = self.await_status(lambda s: self.member(s, slot).calls_held > 0, f"{slot} holds work")
        return self.member(status, slot)

    def mark(self, name: str) -> None:
        self.seen_at[name] = time.monotonic()

    def events(self, kind: str) -> list[str]:
        path = self.folder / "events.jsonl"
        rows = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
        return [row["text"] for row in rows if row["event"] == kind]


class Outcome:
    """What a run left."""

    def __init__(self, folder: Path, error: BaseException | None, watched: Watched | None, output: str) -> None:
        self.folder, self.error, self.watched, self.output = folder, error, watched, output

    def lines(self) -> list[dict]:
        return [json.loads(line) for line in (self.folder / "metrics.jsonl").read_text().splitlines()]

    def ledger(self) -> dict:
        return read_json(self.folder / "ledger.json")["ledger"]

    def tell_pause(self, fault: str, since: float) -> None:
        """Print, for docs/reliability.md, the longest time between updates since a fault, in seconds of `time.time`."""
        paths = (self.folder / "trajectories").glob("update_*.safetensors")
        began = [since, *sorted(at for path in paths if (at := path.stat().st_mtime) > since)]
        print(f"PAUSE {max(after - before for before, after in itertools.pairwise(began)):.1f} s: {fault}")

    def assert_whole(self, updates: int, *, dropped: int = 0) -> None:
        """Every update once, every draw trained on once, and the equation holds on every line."""
        if self.error is not None:
            raise self.error
        lines = self.lines()
        assert [line["step"] for line in lines] == list(range(1, updates + 1))
        for ledger in [line["ledger"] for line in lines] + [self.ledger()]:
            fates = ledger["trained"] + ledger["rolled_back"] + ledger["buffered"] + ledger["in_flight"]
            assert ledger["dispatched"] == fates + sum(ledger["dropped"].values())
        draws = [
            int(draw)
            for step in range(1, updates + 1)
            for draw in read_trajectories(self.folder / "trajectories" / f"update_{step:06d}.safetensors")["draw_index"]
        ]
        assert len(draws) == len(set(draws)) == 32 * updates
        assert sorted(draws)[-1] == len(draws) + dropped - 1
        last = self.ledger()
        assert (last["trained"], last["buffered"], last["in_flight"]) == (32 * updates, 0, 0)
        assert sum(last["dropped"].values()) == dropped

    def assert_same_bytes(self, other: Path, updates: int) -> None:
        """As if nothing had happened."""
        names = ["models/ppo/model.safetensors"]
        names += [f"trajectories/update_{step:06d}.safetensors" for step in range(1, updates + 1)]
        assert {n: file_hash(self.folder / n) for n in names} == {n: file_hash(other / n) for n in names}
        mine, theirs = (
            [json.loads(line)["metrics"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
            for folder in (self.folder, other)
        )
        assert mine == theirs


@pytest.fixture
def short_folder():
    """A folder whose path is short enough for sockets in it."""
    with tempfile.TemporaryDirectory(prefix="mc", dir="/tmp", ignore_cleanup_errors=True) as path:
        yield Path(path)


@pytest.fixture
def break_a_run(tiny, tiny_run, tmp_path, ray_runtime):
    """Runs PPO of `tiny` with changes while somebody breaks it; returns what is left.

    `name` keeps runs apart; a second run of the same name goes on in the same folder.
    """

    def run(*changes, sabotage=None, name="broken", again=False, runtime=None):
        folder = tmp_path / name
        if not folder.exists():
            shutil.copytree(tiny_run, folder)
            again = True
        config = tiny(*changes)
        if not any(change.startswith("evaluate.") for change in changes):
            config = config.model_copy(update={"evaluate": None})
        controls = RunControls(config.name, StopSignal())
        console = Console(file=io.StringIO(), width=200)
        pipeline = Pipeline(
            config,
            folder,
            start_runtime=lambda: runtime or ray_runtime,
            console=console,
            again=frozenset({"ppo"}) if again else frozenset(),
            controls=controls,
        )
        watched, failed = Watched(controls, folder), []

        def break_it() -> None:
            try:
                sabotage(watched)
            except BaseException as error:
                failed.append(error)
                controls.stop("the saboteur failed")

        thread = threading.Thread(target=break_it if sabotage else lambda: None, daemon=True)
        thread.start()
        error = None
        try:
            pipeline.run()
        except Exception as caught:
            error = caught
        thread.join(timeout=DEADLINE_S)
        if failed:
            raise failed[0]
        return Outcome(folder, error, watched, console.file.getvalue())

    return run


@pytest.fixture(scope="session")
def undisturbed(tiny, tiny_run, tmp_path_factory):
    """The folder of the same run with nobody to break it, in one process; by its changes."""
    from deploy.local import LocalRuntime

    done = {}

    def run(*changes):
        if changes not in done:
            folder = tmp_path_factory.mktemp("undisturbed") / "tiny"
            shutil.copytree(tiny_run, folder)
            config = tiny(*changes).model_copy(update={"evaluate": None})
            console = Console(file=io.StringIO(), width=200)
            Pipeline(config, folder, start_runtime=LocalRuntime, console=console, again=frozenset({"ppo"})).run()
            done[changes] = folder
        return done[changes]

    return run


@pytest.fixture(scope="session", name="poll")
def _poll():
    """Wait until something holds, with an end."""
    return poll


@pytest.fixture(scope="session", name="Watched")
def _watched():
    """Sees and steers a run, given its controls and its folder."""
    return Watched


@pytest.fixture(scope="session", name="Outcome")
def _outcome():
    """What a run left, given its folder, its error, who watched it, and what it printed."""
    return Outcome
