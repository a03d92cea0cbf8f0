"""The end that somebody asks for while PPO trains, from the signal or the request to exit code and files."""

import json
import signal
import sys

import pytest

from deploy import exit_codes
from deploy.cli import main
from deploy.control.run_status import StopRequest
from deploy.control.target import find_run
from deploy.local import LocalLearner
from deploy.run_folder.address import read_end
from deploy.run_folder.files import read_json


@pytest.fixture
def minichatgpt(run_copy, monkeypatch, capsys):
    """Runs `minichatgpt run tiny --local` with PPO of 6 updates in a folder where the stages before it are done."""

    def run(*arguments, before_update_3=lambda: None):
        command = ["minichatgpt", "run", "tiny", "--local", "--runs", str(run_copy.parent)]
        update = LocalLearner.update

        def interfered(learner, settings):
            if learner.step == 2:
                before_update_3()
            return update(learner, settings)

        with monkeypatch.context() as patch:
            patch.setattr(LocalLearner, "update", interfered)
            patch.setattr(sys, "argv", [*command, "--set", "ppo.updates=6", *arguments])
            with pytest.raises(SystemExit) as end:
                main()
        return end.value.code, capsys.readouterr()

    return run


def assert_nothing_is_left(folder):
    for name in ("run.json", "control.token", "stages/ppo.json", "stages/evaluate.json", "summary.json"):
        assert not (folder / name).exists(), name
    assert not list(folder.rglob("*.partial"))


def identities(folder):
    return [json.loads(line)["identity"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def by_request(run_copy):
    with find_run("tiny", run_copy.parent) as client:
        assert client.stop(StopRequest(reason="out of money")).stopping == "out of money"


@pytest.mark.parametrize(
    ("ask", "reason", "code"),
    [
        (lambda folder: signal.raise_signal(signal.SIGTERM), "SIGTERM", exit_codes.TERMINATED),
        (lambda folder: signal.raise_signal(signal.SIGINT), "Ctrl-C", exit_codes.INTERRUPTED),
        (by_request, "out of money", exit_codes.STOPPED),
    ],
)
def test_whoever_asks_the_run_ends_after_its_update_with_a_checkpoint_and_the_same_command_goes_on(
    minichatgpt, run_copy, undisturbed, ask, reason, code
):
    handlers = [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)]
    exit_code, said = minichatgpt("--again", "ppo", before_update_3=lambda: ask(run_copy))
    assert exit_code == code
    assert said.err.strip() == (
        f"{reason}: stopped after update 3 of 6. Checkpoint step_000003 is kept; the same command, without --again "
        "ppo, goes on from it"
    )
    assert (read_end(run_copy).reason, read_end(run_copy).exit_code) == (reason, code)
    assert_nothing_is_left(run_copy)
    assert "PPO was stopped after update 3 of 6" in (run_copy / "report.html").read_text(encoding="utf-8")
    assert identities(run_copy) == ["0.1", "0.2", "0.3"]
    assert [signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM)] == handlers

    exit_code, said = minichatgpt()
    assert (exit_code, said.err) == (0, "")
    assert (read_end(run_copy).reason, read_end(run_copy).exit_code) == ("finished", 0)
    assert identities(run_copy) == ["0.1", "0.2", "0.3", "1.4", "1.5", "1.6"]
    assert read_json(run_copy / "summary.json")["updates"] == 6
    whole = undisturbed().folder / "models" / "ppo" / "model.safetensors"
    assert (run_copy / "models" / "ppo" / "model.safetensors").read_bytes() == whole.read_bytes()


def test_a_second_ctrl_c_ends_it_at_once_with_what_the_last_checkpoint_holds(minichatgpt, run_copy):
    def twice():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)

    changes = ("--set", "ppo.checkpoint_every=1", "--again", "ppo")
    exit_code, said = minichatgpt(*changes, before_update_3=twice)
    assert exit_code == exit_codes.INTERRUPTED
    assert "Interrupted. Finished stages are kept; the same command goes on from there." in said.err
    assert (read_end(run_copy).reason, read_end(run_copy).exit_code) == ("interrupted", 130)
    assert_nothing_is_left(run_copy)
    assert not (run_copy / "report.html").exists()
    exit_code, _ = minichatgpt()
    assert exit_code == 0
    assert identities(run_copy) == ["0.1", "0.2", "1.3", "1.4", "1.5", "1.6"]


def test_a_run_that_cannot_go_on_says_why_and_what_is_kept(minichatgpt, run_copy, poison):
    poison(4, times=100)
    changes = ("--set", "learner.max_restarts=0", "--set", "ppo.checkpoint_every=2", "--again", "ppo")
    exit_code, said = minichatgpt(*changes)
    assert exit_code == exit_codes.FAILED
    name, error, note = said.err.strip().splitlines()
    assert name == "LearnerLostError"
    assert error.startswith("the learner in update: weights or optimizer state after update 3 hold nan")
    assert note.startswith("Stopped after update 3 of 6. ")
    assert note.endswith("Checkpoint step_000002 is kept; the same command, without --again ppo, goes on from it")
    assert read_end(run_copy).exit_code == exit_codes.FAILED
    assert read_end(run_copy).reason.startswith("LearnerLostError: the learner in update")
    assert_nothing_is_left(run_copy)
