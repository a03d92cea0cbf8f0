"""`minichatgpt run` on a cluster of its own, ended in each way: nothing is left, and the same command goes on."""

import os
import signal
import subprocess
import sys
import time

import pytest

from deploy.files import read_json
from deploy.run_address import read_end

pytestmark = [pytest.mark.ray, pytest.mark.slow]

UPDATES = 12
SETTINGS = (f"ppo.updates={UPDATES}", "ppo.checkpoint_every=2")
ENDLESS = ("ppo.updates=100000", "ppo.checkpoint_every=0")


def stop(run):
    done = subprocess.run(
        [sys.executable, "-m", "deploy", "stop", str(run.folder), "--reason", "out of money"],
        capture_output=True,
        text=True,
        timeout=180,
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
    again = command(*SETTINGS)
    code, printed = again.end()
    assert code == 0, printed
    assert read_json(run.folder / "stages" / "ppo.json")["metrics"]["lineage"] == 1
    again.assert_nothing_is_left()
    run.assert_nothing_is_left()
    again.outcome().tell_pause("kill -9 of the driver, and the same command at once", killed_at)
    again.outcome().assert_whole(UPDATES)
    again.outcome().assert_same_bytes(undisturbed(*SETTINGS), UPDATES)
