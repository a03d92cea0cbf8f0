"""One process at a time works in a run folder, and the kernel frees it when that process dies."""

import errno
import fcntl
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from common.errors import ConfigError, RunInUseError
from deploy.run_folder import lock as module
from deploy.run_folder.lock import holder_pid, is_held, process_exists, run_lock

ROOT = Path(__file__).parents[3]
HOLD = """
import sys
from pathlib import Path
from deploy.run_folder.lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def holder(tmp_path):
    """A process that holds the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait(60)
    process.stdin.close()
    process.stdout.close()


def test_a_second_process_is_refused_with_the_number_of_the_first(holder, tmp_path):
    with (
        pytest.raises(RunInUseError, match=rf"is in use by process {holder.pid}; .*minichatgpt stop {tmp_path}"),
        run_lock(tmp_path),
    ):
        pass
    assert is_held(tmp_path)
    assert holder_pid(tmp_path) == holder.pid


def test_a_killed_holder_frees_the_folder(holder, tmp_path):
    holder.kill()
    holder.wait(60)
    assert not is_held(tmp_path)
    with run_lock(tmp_path):
        assert holder_pid(tmp_path) == os.getpid()


def test_it_is_free_before_and_after(tmp_path):
    folder = tmp_path / "runs" / "new"
    assert (is_held(folder), holder_pid(folder)) == (False, None)
    with run_lock(folder):
        assert (is_held(folder), holder_pid(folder)) == (True, os.getpid())
    assert (is_held(folder), holder_pid(folder)) == (False, None)


def test_a_failure_inside_frees_it(tmp_path):
    with pytest.raises(KeyError), run_lock(tmp_path):
        raise KeyError
    assert not is_held(tmp_path)


def test_a_short_number_after_a_long_one_is_read_whole(tmp_path):
    (tmp_path / ".lock").write_text("99999999\n", encoding="utf-8")
    with run_lock(tmp_path):
        assert holder_pid(tmp_path) == os.getpid()


def test_whoever_only_looks_does_not_keep_a_run_from_starting(tmp_path):
    with run_lock(tmp_path):
        pass
    descriptor = os.open(tmp_path / ".lock", os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    release = threading.Timer(0.3, os.close, [descriptor])
    release.start()
    with run_lock(tmp_path):
        assert is_held(tmp_path)
    release.join(60)


def test_a_process_that_was_left_behind_is_looked_for_elsewhere(holder, tmp_path, monkeypatch):
    monkeypatch.setattr(module, "WAIT_S", 0.0)
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    (tmp_path / ".lock").write_bytes(gone.stdout)
    with (
        pytest.raises(RunInUseError, match=r"which is gone, and a process that it left behind .* `fuser "),
        run_lock(tmp_path),
    ):
        pass


def test_a_file_system_without_locks_is_a_setting_to_change(tmp_path, monkeypatch):
    def refuse(descriptor, kind):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(ConfigError, match=r"cannot be locked: No locks available; .*--runs FOLDER"), run_lock(tmp_path):
        pass


def test_a_process_that_waits_for_its_parent_exists_no_more():
    process = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    assert process_exists(process.pid)
    process.stdin.close()
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert not process_exists(process.pid)
    process.wait(60)
    assert not process_exists(process.pid)
