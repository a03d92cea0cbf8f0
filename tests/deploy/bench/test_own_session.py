"""Commands in a session of their own: what is said of those that fail or hang, and that nothing is left of any."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import BenchmarkError
from deploy.bench.own_session import end_session, members, run_alone

pytestmark = pytest.mark.skipif(not Path("/proc").is_dir(), reason="sessions are looked up in /proc")

LONG_S = 600.0
STUBBORN = """
import signal, subprocess
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "600"], process_group=0)
print(child.pid, flush=True)
child.wait()
"""
KIND = """
import pathlib, signal, sys
signal.signal(signal.SIGTERM, lambda *_: (pathlib.Path(sys.argv[1]).write_text("taken down"), sys.exit(7)))
print("ready", flush=True)
signal.pause()
"""


@pytest.fixture
def begun():
    """Starts a program in a session of its own; returns it and the first line that it wrote."""
    started = []

    def begin(code, *arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, start_new_session=True
        )
        started.append(process)
        return process, process.stdout.readline().decode().strip()

    yield begin
    for process in started:
        end_session(process, 0.0)
        process.stdout.close()


def test_a_command_that_ends_well_says_nothing_and_leaves_nothing(tmp_path):
    log = tmp_path / "log"
    run_alone(["sh", "-c", "echo $$; sleep 600 & exit 0"], log, timeout_s=LONG_S)
    assert not members(int(log.read_text()))


def test_what_failed_is_told_with_its_command_and_the_end_of_its_output(tmp_path):
    with pytest.raises(BenchmarkError) as failed:
        run_alone(["sh", "-c", "echo first words; echo last words >&2; exit 3"], tmp_path / "log", timeout_s=LONG_S)
    message = str(failed.value)
    assert message.startswith("sh -c echo first words;")
    assert "failed with exit code 3" in message
    assert message.endswith("first words\nlast words")


def test_what_hangs_is_told_likewise_and_ended_with_all_that_it_started(tmp_path):
    with pytest.raises(BenchmarkError, match="has not ended after 1 s") as failed:
        run_alone(["sh", "-c", "echo pid $$; sleep 600"], tmp_path / "log", timeout_s=1.0)
    found = re.search(r"\npid (\d+)$", str(failed.value))
    assert found
    assert not members(int(found[1]))


def test_a_command_is_asked_to_end_before_it_is_killed(begun, tmp_path):
    process, _ = begun(KIND, str(tmp_path / "word"))
    end_session(process, LONG_S)
    assert process.returncode == 7
    assert (tmp_path / "word").read_text() == "taken down"


def test_who_does_not_end_is_killed_with_children_in_process_groups_of_their_own(begun):
    process, child = begun(STUBBORN)
    assert set(members(process.pid)) == {process.pid, int(child)}
    end_session(process, 0.1)
    assert process.returncode == -9
    assert not members(process.pid)


def test_ours_being_interrupted_leaves_nothing_either(begun, monkeypatch):
    process, _ = begun(STUBBORN)

    def interrupted(timeout=None):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(process, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            end_session(process, LONG_S)
    assert not members(process.pid)
