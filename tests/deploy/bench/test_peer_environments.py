"""Environments of the peers: built once, used again, never taken for complete when they are not; no pip is run."""

import sys

import pytest
import torch

from common.errors import BenchmarkError
from deploy.bench.peers.environments import COMPLETE, Environment, python_of, run_logged, tail

PEER = Environment("peer-1.0", ("peer==1.0", "numpy==2.4.6"))


class FakeTools:
    """Stands for venv and pip: notes what was run, and fails where it is told to."""

    def __init__(self, *, fail: str = "") -> None:
        self.commands: list[list[str]] = []
        self.fail = fail

    def __call__(self, command, log, say):
        self.commands.append(list(command))
        with log.open("a", encoding="utf-8") as file:
            file.write(f"ran {command[2]}\n")
        say(f"running {command[2]}")
        return 1 if command[2] == self.fail else 0


def test_an_environment_is_made_then_filled_with_its_pins_and_our_torch(tmp_path):
    tools, said = FakeTools(), []
    python = python_of(PEER, tmp_path, said.append, tools)
    venv, pip = tools.commands
    assert venv == [sys.executable, "-m", "venv", str(PEER.folder(tmp_path))]
    assert pip[:4] == [str(python), "-m", "pip", "install"]
    assert {"peer==1.0", "numpy==2.4.6", f"torch=={torch.__version__.split('+')[0]}"} <= set(pip)
    assert python.is_relative_to(PEER.folder(tmp_path))
    assert "running pip" in said


def test_a_complete_environment_is_used_again(tmp_path):
    first = python_of(PEER, tmp_path, print, FakeTools())
    again = FakeTools()
    assert python_of(PEER, tmp_path, print, again) == first
    assert not again.commands


def test_one_that_was_left_half_done_is_built_anew_from_nothing(tmp_path):
    python_of(PEER, tmp_path, print, FakeTools())
    folder = PEER.folder(tmp_path)
    (folder / COMPLETE).unlink()
    (folder / "debris").touch()
    tools = FakeTools()
    python_of(PEER, tmp_path, print, tools)
    assert len(tools.commands) == 2
    assert not (folder / "debris").exists()


@pytest.mark.parametrize("failing", ["venv", "pip"])
def test_a_failure_shows_the_end_of_the_log_and_leaves_nothing_that_counts_as_complete(tmp_path, failing):
    with pytest.raises(
        BenchmarkError, match=rf"peer-1\.0 cannot be built: exit code 1 of (.|\n)*ran {failing}"
    ) as caught:
        python_of(PEER, tmp_path, print, FakeTools(fail=failing))
    assert str(PEER.folder(tmp_path) / "pip.log") in str(caught.value)
    assert not (PEER.folder(tmp_path) / COMPLETE).exists()


def test_other_pins_are_another_environment(tmp_path):
    assert PEER.folder(tmp_path) != Environment("peer-1.0", ("peer==1.0", "numpy==2.4.5")).folder(tmp_path)
    assert PEER.folder(tmp_path) == Environment(*(PEER.name, PEER.pins)).folder(tmp_path)


def test_what_a_program_says_is_in_the_log_and_told(tmp_path):
    said = []
    code = "import sys; print('one', flush=True); print('two', file=sys.stderr); sys.exit(3)"
    assert run_logged((sys.executable, "-c", code), tmp_path / "log", said.append) == 3
    assert said == ["one", "two"]
    assert tail(tmp_path / "log") == "one\ntwo"
