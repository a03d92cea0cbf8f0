"""One process at a time works in a run folder. The kernel frees the lock when its holder dies, however it dies.

Whoever looks for a run asks here whether it lives: process numbers are used again, locks are not.
"""

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import ConfigError, RunInUseError

LOCK_NAME = ".lock"
WAIT_S = 2.0
"""A look at a lock holds it for an instant: so long do we try before we believe that it is taken."""
RETRY_S = 0.05


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Hold the run folder while the block runs; the folder is made if need be.

    Raises:
        RunInUseError: another process holds it.
        ConfigError: the file system has no locks.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with os.fdopen(os.open(folder / LOCK_NAME, os.O_RDWR | os.O_CREAT, 0o644), "r+", encoding="utf-8") as file:
        _acquire(file.fileno(), folder)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        try:
            yield
        finally:
            file.truncate(0)


def is_held(folder: Path) -> bool:
    """Whether a process holds the run folder; raises ConfigError where the file system has no locks."""
    try:
        descriptor = os.open(folder / LOCK_NAME, os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        return not _try(descriptor, fcntl.LOCK_SH, folder)
    finally:
        os.close(descriptor)


def holder_pid(folder: Path) -> int | None:
    """Process that took the lock last and has not given it back; None if the file does not say."""
    try:
        text = (folder / LOCK_NAME).read_text(encoding="utf-8").strip()
    except FileNotFoundError:
        return None
    return int(text) if text.isdecimal() else None


def process_exists(pid: int) -> bool:
    """Whether there is such a process on this machine; one that has ended and waits for its parent does not count."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True  # of another user
    try:
        state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    except OSError:
        return True  # no /proc on this system
    return state != "Z"


def _acquire(descriptor: int, folder: Path) -> None:
    deadline = time.monotonic() + WAIT_S
    while not _try(descriptor, fcntl.LOCK_EX, folder):
        if time.monotonic() > deadline:
            raise RunInUseError(_in_use(folder))
        time.sleep(RETRY_S)


def _try(descriptor: int, kind: int, folder: Path) -> bool:
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError as error:
        raise ConfigError(
            f"{folder / LOCK_NAME} cannot be locked: {error.strerror}; put the runs on a file system that has locks "
            "(--runs FOLDER)"
        ) from error
    return True


def _in_use(folder: Path) -> str:
    pid = holder_pid(folder)
    if pid is None:
        return f"{folder} is in use by another process; wait for its end, or choose another name (--set name=OTHER)"
    if not process_exists(pid):
        return (
            f"{folder} was in use by process {pid}, which is gone, and a process that it left behind still holds "
            f"{folder / LOCK_NAME}; `fuser {folder / LOCK_NAME}` names it"
        )
    return (
        f"{folder} is in use by process {pid}; `minichatgpt status {folder}` shows it, `minichatgpt stop {folder}` "
        "ends it; or choose another name (--set name=OTHER)"
    )
