"""`minichatgpt status`, `scale`, `checkpoint` and `stop`, as a user meets them."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from common.errors import CheckpointError
from deploy.cli import main
from deploy.control.run_status import RunStatus
from deploy.run_folder.address import read_end

ROOT = Path(__file__).parents[3]
ENDLESS = ["--local", "--set", "pretrain.epochs=1000000"]
"""`tiny` pre-trains for hours."""
ON_RAY = "--local"
"""The option to leave out."""


@pytest.fixture
def inside(monkeypatch, capsys):
    """Runs the command in this process; returns exit code, output and errors."""
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["minichatgpt", *arguments])
        with pytest.raises(SystemExit) as ended:
            main()
        return ended.value.code, *capsys.readouterr()

    return call


@pytest.fixture
def command(inside, served):
    """Runs a command on the served run."""
    return lambda verb, *arguments: inside(verb, "tiny", *arguments, "--runs", str(served.folder.parent))


def start(tmp_path: Path, *arguments: str) -> subprocess.Popen:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200", "NO_COLOR": "1", "TERM": "dumb"}
    return subprocess.Popen(
        [sys.executable, "-m", "deploy", *arguments],
        cwd=tmp_path,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture
def endless(tmp_path, inside, request):
    """A real run of `tiny` in a process of its own, in the midst of its pre-training.

    The parameter, if there is one, is an option to leave out.
    """
    options = [option for option in ENDLESS if option != getattr(request, "param", None)]
    process = start(tmp_path, "run", "tiny", *options)
    deadline = time.monotonic() + 120
    stage = None
    while stage != "pretrain":
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        code, shown, _ = inside("status", "tiny", "--json", "--runs", str(tmp_path / "runs"))
        stage = json.loads(shown)["stage"] if code == 0 else None
        time.sleep(0.1)
    yield process
    process.kill()
    process.communicate(timeout=60)


def processes_under(pid: int) -> dict[psutil.Process, str]:
    """Processes that a process started, and their command lines."""
    found = {}
    for process in psutil.Process(pid).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            found[process] = " ".join(process.cmdline())
    return found


# --- status


def test_status_shows_the_run_and_each_of_its_processes(command, served):
    served.run.active = 1
    code, shown, _ = command("status")
    assert code == 0
    for part in (
        "tiny  process 1, for",
        "3 of 12 ━━━━━━━━━━━━━━━━━━━━━━━━ 25%, lineage 1",
        "collect, for 1.5 s",
        "dispatched 128 · trained 96 · dropped 2 (reward_timeout 2) · in flight 30",
        "active, process 4711, 1 restarts",
        "update 7, 0.5 s old, file:///runs/tiny/checkpoints/step_000007",
        "Rollout workers: 1 of 2 active, 3 requests wait, 1.5 s",
        "12.0 s · 1,497 tokens/s · learner waits 40% of it, workers idle 25%, replicas 90%",
        "Reward replicas: 1 of 1 active",
        "worker-1: died",
    ):
        assert part in shown
    worker = next(line.split() for line in shown.splitlines() if line.startswith("worker-1"))
    assert worker == ["worker-1", "syncing", "node-a", "101", "1:3", "–", "–", "–", "–", "1", "0", "0.2", "s"]
    worker = next(line for line in shown.splitlines() if line.startswith("worker-0"))
    assert " ".join(worker.split()) == "worker-0 active node-a 100 1:3 1 min 03 s 1,234 75% 512 MB 0 0 0.2 s"
    assert max(map(len, shown.splitlines())) <= 100
    replica = next(line.split() for line in shown.splitlines() if line.startswith("replica-0"))
    assert replica == ["replica-0", "active", "node-a", "100", "75%", "512", "MB", "0", "0", "0.2", "s"]


@pytest.mark.parametrize(
    ("pause", "said"), [("none", None), ("asked", "after this update"), ("paused", "it stands still")]
)
def test_status_shows_settings_and_whether_the_run_stands_still(command, served, pause, said):
    served.run.pause_state = pause
    _, shown, _ = command("status")
    assert "temperature 1 · learning rate 0.001 · kl target 6" in shown
    assert "kl coef" not in shown
    assert ("pause" in shown) == (said is not None)
    assert said is None or said in shown


def test_what_a_run_says_cannot_steer_the_terminal(command, served):
    served.run.active = 0
    served.run.stopped = "a [bold]reason"
    _, shown, _ = command("status")
    assert "\x1b" not in shown
    assert "in generate [/] twice" in shown
    assert "a [bold]reason" in shown


def test_status_as_json_is_what_the_run_says(command, served):
    code, shown, _ = command("status", "--json")
    assert code == 0
    assert RunStatus.model_validate_json(shown) == served.run.status()


def test_status_of_what_does_not_run_is_an_error(inside, tmp_path):
    (tmp_path / "tiny").mkdir()
    code, shown, message = inside("status", "tiny", "--runs", str(tmp_path))
    assert (code, shown) == (1, "")
    assert message.startswith("ControlError\ntiny does not run")


# --- scale


def test_scale_shows_what_was_and_what_shall_be(command, served):
    code, shown, _ = command("scale", "--rollout-workers", "4", "--reward-replicas", "2")
    assert code == 0
    assert shown == "rollout workers 2 → 4, 4 active now\nreward replicas 1 → 2, 2 active now\n"
    assert ("scale", 4, 2) in served.run.calls


def test_scale_leaves_alone_what_is_not_named(command, served):
    _, shown, _ = command("scale", "--reward-replicas", "3")
    assert shown == "reward replicas 1 → 3, 3 active now\n"
    assert ("scale", None, 3) in served.run.calls


def test_scale_can_wait_until_all_are_there(command):
    code, shown, _ = command("scale", "--rollout-workers", "4", "--wait")
    assert (code, shown.splitlines()[-1]) == (0, "✓ as asked for")


def test_scale_waits_no_longer_than_it_may(command, served):
    served.run.active = 3
    code, shown, message = command("scale", "--rollout-workers", "4", "--wait", "--timeout", "0.1")
    assert code == 1
    assert "rollout workers 2 → 4" in shown
    assert "not there within 0.1 s" in message
    assert "rollout workers: 3 of 4 active; worker-3 syncing" in message


def test_below_the_minimum_the_run_refuses(command):
    code, shown, message = command("scale", "--rollout-workers", "1")
    assert (code, shown) == (1, "")
    assert "rollout_workers=1 is less than rollout.min_workers=2; ask for 2 or more" in message


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        ([], 1, "nothing to change; give --rollout-workers N, --reward-replicas M or both"),
        (["--rollout-workers", "10001"], 1, "at most 10000 are legal"),
        (["--rollout-workers", "0"], 2, "--rollout-workers"),
        (["--rollout-workers", "many"], 2, "--rollout-workers"),
    ],
)
def test_a_size_that_is_none_reaches_no_run(command, served, arguments, code, said):
    ended, _, message = command("scale", *arguments)
    assert ended == code
    assert said in message
    assert not served.run.calls


# --- checkpoint


def test_checkpoint_shows_step_and_place(command, served):
    served.run.future.set_result(served.run.status().newest_checkpoint)
    code, shown, _ = command("checkpoint")
    assert code == 0
    assert shown == ("✓ checkpoint of update 7, written and verified:\nfile:///runs/tiny/checkpoints/step_000007\n")


def test_checkpoint_waits_no_longer_than_it_may(command):
    code, shown, message = command("checkpoint", "--timeout", "0.1")
    assert (code, shown) == (1, "")
    assert "not written and verified within 0.1 s; it goes on" in message


def test_checkpoint_that_fails_says_why(command, served):
    served.run.future.set_exception(CheckpointError("the disk is full"))
    code, _, message = command("checkpoint")
    assert code == 1
    assert message.endswith("the disk is full\n")


# --- stop


def test_stop_can_leave_at_once(command, served):
    code, shown, _ = command("stop", "--no-wait", "--reason", "out of money")
    assert code == 0
    assert "was asked to end" in shown
    assert served.run.stopped == "out of money"


def test_stop_waits_no_longer_than_it_may(command):
    code, _, message = command("stop", "--timeout", "0.1")
    assert code == 1
    assert "has not ended within 0.1 s and is still at it" in message


def test_a_reason_of_two_lines_is_refused(command, served):
    code, _, message = command("stop", "--reason", "two\nlines")
    assert code == 1
    assert "one line of printable characters" in message
    assert not served.run.calls


# --- a real run, ended in each way


def test_stop_ends_a_real_run_that_no_other_can_join(endless, inside, tmp_path):
    code, shown, message = inside("run", "tiny", *ENDLESS, "--runs", str(tmp_path / "runs"))
    assert (code, shown) == (1, "")
    assert message.startswith(f"RunInUseError\n{tmp_path}/runs/tiny is in use by process {endless.pid};")
    assert endless.poll() is None
    code, shown, _ = inside("stop", "tiny", "--reason", "out of money", "--runs", str(tmp_path / "runs"))
    assert (code, shown) == (0, "✓ tiny has ended (exit code 3):\nout of money\n")
    _, message = endless.communicate(timeout=60)
    assert endless.returncode == 3
    assert message == "stopped (out of money); finished stages are kept, and the same command goes on from there\n"
    left = {path.name for path in (tmp_path / "runs" / "tiny").iterdir()}
    assert not left & {"run.json", "control.token"}
    code, _, message = inside("status", "tiny", "--runs", str(tmp_path / "runs"))
    assert code == 1
    assert "exit code 3: out of money" in message


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "code", "reason"), [(signal.SIGINT, 130, "Ctrl-C"), (signal.SIGTERM, 143, "SIGTERM")]
)
def test_a_signal_ends_a_real_run_in_order(endless, tmp_path, number, code, reason):
    endless.send_signal(number)
    _, message = endless.communicate(timeout=60)
    assert endless.returncode == code
    assert message.startswith(f"stopped ({reason}); finished stages are kept")
    end = read_end(tmp_path / "runs" / "tiny")
    assert (end.reason, end.exit_code) == (reason, code)
    assert not (tmp_path / "runs" / "tiny" / "run.json").exists()


@pytest.mark.slow
@pytest.mark.ray
@pytest.mark.parametrize("endless", [ON_RAY], indirect=True)
def test_sigterm_ends_a_real_run_on_ray_in_order_though_ray_has_a_handler_of_its_own(endless, tmp_path):
    deadline = time.monotonic() + 120
    while not any(line.startswith("ray::") and "run_stage" in line for line in processes_under(endless.pid).values()):
        assert time.monotonic() < deadline, "no worker of Ray trains"
        time.sleep(0.1)
    started = processes_under(endless.pid)
    endless.send_signal(signal.SIGTERM)
    _, message = endless.communicate(timeout=120)
    assert (endless.returncode, message[:17]) == (143, "stopped (SIGTERM)")
    _, alive = psutil.wait_procs(list(started), timeout=60)
    assert not alive
    assert read_end(tmp_path / "runs" / "tiny").exit_code == 143


@pytest.mark.slow
def test_after_a_kill_the_folder_is_free_and_nothing_stale_is_believed(endless, inside, tmp_path):
    endless.kill()
    endless.wait(60)
    runs = tmp_path / "runs"
    assert {path.name for path in (runs / "tiny").iterdir()} >= {"run.json", "control.token", ".lock"}
    code, _, message = inside("status", "tiny", "--runs", str(runs))
    assert code == 1
    assert f"process {endless.pid} is gone and left no word" in message
    again = start(tmp_path, "run", "tiny", "--local", "--set", "ppo.updates=1", "--set", "evaluate.prompts=4")
    _, message = again.communicate(timeout=200)
    assert again.returncode == 0, message
    assert not {path.name for path in (runs / "tiny").iterdir()} & {"run.json", "control.token"}
    assert read_end(runs / "tiny").exit_code == 0
