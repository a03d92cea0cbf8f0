"""`minichatgpt run` on a cluster of its own, ended in each way: nothing is left, and the same command goes on."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from deploy.run_folder.address import read_end
from deploy.run_folder.files import read_json

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
DEADLINE_S = 180.0
UPDATES = 12
SETTINGS = (f"ppo.updates={UPDATES}", "ppo.checkpoint_every=2")
ENDLESS = ("ppo.updates=100000", "ppo.checkpoint_every=0")


class Command:
    """`minichatgpt run` in a process of its own, with a Ray cluster of its own.

    It leads a session, so that all that it starts is known by the session's number, whoever its parent is by now.
    """

    def __init__(self, arguments: list[str], folder: Path, environment: dict[str, str], poll, outcome) -> None:
        self.folder, self._poll, self._outcome = folder, poll, outcome
        self._printed = folder.parent / f"{len(list(folder.parent.glob('*.out')))}.out"  # a pipe has ends in orphans
        self._shared_memory = set(os.listdir("/dev/shm"))
        with self._printed.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "deploy", *arguments],
                cwd=folder.parent,
                env=environment,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def alive(self) -> list[psutil.Process]:
        """All that it started and that has not ended, itself included."""
        return [process for process in psutil.process_iter() if self._is_alive(process)]

    def _is_alive(self, process: psutil.Process) -> bool:
        try:
            return os.getsid(process.pid) == self.process.pid and process.status() != psutil.STATUS_ZOMBIE
        except (ProcessLookupError, psutil.NoSuchProcess):
            return False

    def await_step(self, step: int) -> None:
        """Return once that many updates are recorded, while it runs."""
        path = self.folder / "metrics.jsonl"
        self._poll(lambda: path.is_file() or self.process.poll() is not None, what="the first update")
        self._poll(
            lambda: path.read_text().count("\n") >= step or self.process.poll() is not None, what=f"update {step}"
        )
        assert self.process.poll() is None, self._printed.read_text()

    def kill_all(self) -> None:
        """SIGKILL for the driver, Ray's own processes and all actors, as when the machine loses its power."""
        self.process.kill()
        for process in self.alive():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()
        self.process.wait(timeout=DEADLINE_S)

    def interrupt(self) -> None:
        """Ctrl-C, as a terminal sends it: to the driver's whole process group."""
        os.killpg(self.process.pid, signal.SIGINT)

    def end(self) -> tuple[int, str]:
        """Exit code, and what it printed."""
        return self.process.wait(timeout=DEADLINE_S), self._printed.read_text()

    def assert_nothing_is_left(self) -> None:
        """No process, no shared memory, no word that it still runs, no half of a checkpoint."""
        self._poll(lambda: not self.alive(), what=f"all are gone: {self.alive()}")
        self._poll(lambda: set(os.listdir("/dev/shm")) <= self._shared_memory, what="shared memory is given back")
        assert not [name for name in ("run.json", "control.token") if (self.folder / name).exists()]
        assert not list((self.folder / "checkpoints").glob("*.partial"))

    def outcome(self):
        """What the run left, for comparisons."""
        return self._outcome(self.folder, None, None, self._printed.read_text())


@pytest.fixture
def command(tiny_run, tmp_path, short_folder, poll, Outcome):
    """Starts `minichatgpt run tiny`, changes as `--set` takes them, from where PPO begins; again goes on from there.

    Another cluster, which is no business of the run's, was begun on this machine before.
    """
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_run, folder, ignore=shutil.ignore_patterns("checkpoints", "ppo*", "evaluate.json", "*.jsonl"))
    (short_folder / "ray").mkdir()
    (short_folder / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
    started = []

    def start(*changes: str) -> Command:
        # A cluster of its own, with a token of its own: this process's environment is not to help it.
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        environment |= {"PYTHONPATH": str(ROOT), "COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb"}
        environment["RAY_TMPDIR"] = str(short_folder)
        sets = [word for change in changes for word in ("--set", change)]
        started.append(Command(["run", "tiny", "--runs", str(tmp_path), *sets], folder, environment, poll, Outcome))
        return started[-1]

    yield start
    for run in started:
        run.kill_all()


def stop(run):
    done = subprocess.run(
        [sys.executable, "-m", "deploy", "stop", str(run.folder), "--reason", "out of money"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "has ended (exit code 3)" in done.stdout


def test_a_run_that_finishes_leaves_nothing(command):
    run = command()
    code, printed = run.end()
    assert code == 0, printed
    run.assert_nothing_is_left()


@pytest.mark.parametrize(
    ("end", "code", "reason"),
    [
        pytest.param(lambda run: run.interrupt(), 130, "Ctrl-C", id="ctrl-c"),
        pytest.param(lambda run: os.kill(run.process.pid, signal.SIGTERM), 143, "SIGTERM", id="sigterm"),
        pytest.param(stop, 3, "out of money", id="stop"),
    ],
)
def test_a_run_that_is_ended_writes_a_checkpoint_and_leaves_nothing(command, end, code, reason):
    run = command(*ENDLESS)
    run.await_step(3)
    end(run)
    ended, printed = run.end()
    assert ended == code, printed
    run.assert_nothing_is_left()
    step = len(run.outcome().lines())
    assert printed.splitlines()[-1] == (
        f"{reason}: stopped after update {step} of 100000. Checkpoint step_{step:06d} is kept; the same command goes "
        "on from it"
    )
    assert (run.folder / "checkpoints" / f"step_{step:06d}" / "manifest.json").is_file()
    assert (read_end(run.folder).reason, read_end(run.folder).exit_code) == (reason, code)


def test_twelve_updates_are_the_same_whether_or_not_all_was_killed_after_five(command, undisturbed):
    run = command(*SETTINGS)
    run.await_step(5)
    killed_at = time.time()
    run.kill_all()
    assert len(run.outcome().lines()) < UPDATES, "it was cut off"
    assert (run.folder / "run.json").exists(), "nobody was there to clear up"

    again = command(*SETTINGS)
    code, printed = again.end()
    assert code == 0, printed
    again.assert_nothing_is_left()
    run.assert_nothing_is_left()
    outcome = again.outcome()
    outcome.tell_pause("kill -9 of everything, and the same command at once", killed_at)
    outcome.assert_whole(UPDATES)
    outcome.assert_same_bytes(undisturbed(*SETTINGS), UPDATES)
    assert outcome.ledger()["rolled_back"] > 0, "what was trained after the checkpoint is done again"

    third = command(*SETTINGS)
    code, printed = third.end()
    assert code == 0, printed
    assert "✓ ppo done before, same inputs" in printed
    third.assert_nothing_is_left()
    outcome.assert_same_bytes(undisturbed(*SETTINGS), UPDATES)


def test_a_driver_that_is_killed_takes_its_cluster_along_and_the_run_goes_on(command, undisturbed):
    run = command(*SETTINGS)
    run.await_step(5)
    killed_at = time.time()
    run.process.kill()
    lineage = read_json(run.folder / "ledger.json")["lineage"]
    again = command(*SETTINGS)
    code, printed = again.end()
    assert code == 0, printed
    assert read_json(run.folder / "stages" / "ppo.json")["metrics"]["lineage"] == lineage + 1
    again.assert_nothing_is_left()
    run.assert_nothing_is_left()
    again.outcome().tell_pause("kill -9 of the driver, and the same command at once", killed_at)
    again.outcome().assert_whole(UPDATES)
    again.outcome().assert_same_bytes(undisturbed(*SETTINGS), UPDATES)
