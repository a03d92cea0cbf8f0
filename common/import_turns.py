"""Processes that load their packages take turns: no more at a time than the machine has cores.

Importing torch and transformers is seconds of pure computation. Four processes on two cores all come late; in turns the
first two come after half of the time. Actors take turns; the driver, which begins before them, does not.
"""

import errno
import fcntl
import os
import platform
import stat
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

PATIENCE_S = 60.0
"""Longest time to wait: turns are for speed alone, and nobody stands still for a process that does."""
LOOK_EVERY_S = 0.05
"""Time between two looks for a turn that has ended."""
_TAKEN = (errno.EAGAIN, errno.EACCES)


@contextmanager
def import_turn(
    folder: Path | None = None, *, cores: int | None = None, patience_s: float = PATIENCE_S
) -> Iterator[bool]:
    """Import inside; yields whether it is our turn: not where nobody ended in time, or the folder takes no locks.

    The kernel gives a turn back when its process ends, however it ends.

    Args:
        folder: where the locks are, one for each core; None: this user's own in the machine's temporary folder.
        cores: turns at a time; None: as many as the machine has.
        patience_s: longest time to wait.
    """
    own = f"minichatgpt-imports-{platform.node()}-{os.getuid()}"  # the temporary folder may be of many machines
    folder = folder or Path(tempfile.gettempdir()) / own
    with ExitStack() as stack:
        yield _await_turn(stack, folder, cores or os.cpu_count() or 1, time.monotonic() + patience_s)


def _await_turn(stack: ExitStack, folder: Path, cores: int, end: float) -> bool:
    try:
        folder.mkdir(mode=0o700, exist_ok=True)
        if not _is_ours(folder):
            return False
        files = [stack.enter_context((folder / str(number)).open("ab")) for number in range(cores)]
        while not any(_try(file.fileno()) for file in files):
            if time.monotonic() > end:
                return False
            time.sleep(LOOK_EVERY_S)
    except OSError:
        return False
    return True


def _is_ours(folder: Path) -> bool:
    """Whether nobody else can have put something into it: the temporary folder is everybody's."""
    seen = folder.lstat()
    return stat.S_ISDIR(seen.st_mode) and seen.st_uid == os.getuid()


def _try(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _TAKEN:
            return False
        raise
    return True
