"""A command in a session of its own, of which nothing is left behind, whether it ends, fails, hangs, or we are ended.

A run's Ray cluster puts its processes into process groups of their own, but they all stay in the session of the command
that started them, whoever their parents are by then. Called by `bench loop`.
"""

import os
import signal
import subprocess
from collections.abc import Sequence
from pathlib import Path

import psutil

from common.errors import BenchmarkError

GRACE_S = 20.0
"""From asking a command to end, in which it may take down its cluster, until all of it is killed."""
TAIL_CHARACTERS = 4000
SWEEPS = 20
"""A killed process may have started others meanwhile; the kernel may keep one that waits for a disk for longer."""


def run_alone(command: Sequence[str], log: Path, *, timeout_s: float, grace_s: float = GRACE_S) -> None:
    """Run a command to its end, its output in a file: a pipe would stay open as long as any of its children lives.

    Raises:
        BenchmarkError: it failed, or took too long; shows the end of its output.
    """
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        code = process.wait(timeout_s)
    except subprocess.TimeoutExpired as error:
        raise BenchmarkError(_told(command, f"has not ended after {timeout_s:g} s", log)) from error
    finally:
        end_session(process, grace_s)
    if code != 0:
        raise BenchmarkError(_told(command, f"failed with exit code {code}", log))


def end_session(process: "subprocess.Popen[bytes]", grace_s: float) -> None:
    """Ask the first process of a session to end, and kill what is left of the session afterwards."""
    try:
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
            process.wait(grace_s)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    finally:
        for _ in range(SWEEPS):
            if not (left := members(process.pid)):
                break
            for member in left:
                _kill(member)
            psutil.wait_procs(left, timeout=1.0)


def members(session: int) -> list[psutil.Process]:
    """Processes of a session that have not ended."""
    return [process for process in psutil.process_iter() if _is_member(process, session)]


def _is_member(process: psutil.Process, session: int) -> bool:
    try:
        return os.getsid(process.pid) == session and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, PermissionError, psutil.Error):
        return False


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def _told(command: Sequence[str], what: str, log: Path) -> str:
    end = log.read_text(encoding="utf-8", errors="replace")[-TAIL_CHARACTERS:].rstrip()
    return f"{' '.join(command)} {what}; the end of its output:\n{end}"
