"""A command in a session of its own, of which nothing is left behind, whether it ends, fails, hangs, or we are ended.

A run's Ray cluster puts its processes into process groups of their own, but they all stay in the session of the command
that started them, whoever their parents are by then. Where there is no /proc to look them up in, the first process's
group is ended, and the rest is left to Ray, whose processes end with the one that started them. Called by `bench loop`.
"""

import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from common.errors import BenchmarkError

GRACE_S = 20.0
"""From asking a command to end, in which it may take down its cluster, until all of it is killed."""
TAIL_CHARACTERS = 4000
SWEEPS, SWEEP_S = 100, 0.05
"""A process that is killed may have started others meanwhile."""
ENDED = ("Z", "X")
"""States of processes that only their parents have not looked at yet."""
_PROCESSES = Path("/proc")


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
        os.killpg(process.pid, signal.SIGKILL)  # while it is not waited for: its number cannot be another's yet
        process.wait()
    finally:
        for _ in range(SWEEPS):
            if not (left := members(process.pid)):
                break
            for number in left:
                _kill(number)
            time.sleep(SWEEP_S)


def members(session: int) -> list[int]:
    """Numbers of the processes of a session that have not ended; none where there is no /proc."""
    numbers = [int(entry.name) for entry in _PROCESSES.iterdir() if entry.name.isdigit()] if _PROCESSES.is_dir() else []
    return [number for number in numbers if _is_member(number, session)]


def _is_member(number: int, session: int) -> bool:
    try:
        state = (_PROCESSES / str(number) / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
        return os.getsid(number) == session and state.split()[0] not in ENDED
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return False


def _kill(number: int) -> None:
    try:
        os.kill(number, signal.SIGKILL)
    except ProcessLookupError:
        return


def _told(command: Sequence[str], what: str, log: Path) -> str:
    end = log.read_text(encoding="utf-8", errors="replace")[-TAIL_CHARACTERS:].rstrip()
    return f"{' '.join(command)} {what}; the end of its output:\n{end}"
