"""One driver at a time works on a run folder at a URL: an object there says who, and is renewed while it does.

Where the store can create an object only if there is none, as S3 can, two that start at once cannot both have it. A
holder that is gone is known by this: its object does not change for LEASE_S while we watch, by our own clock. On one
machine `lock.py` tells more, at once.
"""

import os
import socket
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import CheckpointError, RunInUseError
from common.storage import Folder
from deploy.run_folder.lock import process_exists

LEASE: Final = "lease.json"
LEASE_S: Final = 60.0
"""A lease that is not renewed for so long is free."""
RENEW_S: Final = 15.0
"""Time between two renewals."""
POLL_S: Final = 2.0
"""Time between two looks at somebody else's lease."""
FORGOTTEN_S: Final = 600.0
"""A lease of this age is free at once: so far no two clocks are apart."""


class Lease(BaseModel):
    """Who works on a run folder."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    session: str
    """Of one `run` command; the workplace that it worked in knows it too."""
    host: str
    """Name of its machine, and there of its space of process numbers."""
    pid: int
    """Of the driver."""
    renewed_at: datetime
    """When it last said that it lives, UTC."""
    is_over: bool = False
    """Whether it has ended in order."""


def new_lease(session: str) -> Lease:
    """Of this process."""
    return Lease(session=session, host=_machine(), pid=os.getpid(), renewed_at=datetime.now(UTC))


def take_lease(folder: Folder, mine: Lease, *, known: str | None, wait_s: float, say: Callable[[str], None]) -> str:
    """Become the one who works on a run folder.

    Args:
        folder: of the run, at its URL.
        mine: what is written there.
        known: session that is known to have ended, for this process holds the lock of its workplace.
        wait_s: so long another's lease is watched before it is taken for free.
        say: told that we wait.

    Returns:
        The session that worked there last; empty if none has.

    Raises:
        RunInUseError: somebody works there, or was quicker.
        CheckpointError: the store cannot be read or written.
    """
    before = read_lease(folder)
    if before is None:
        if folder.create(LEASE, _encode(mine)):
            _check(folder, mine)
            return ""
        raise RunInUseError(_in_use(folder, read_lease(folder)))
    if not (before.is_over or before.session == known or _is_gone(before)):
        say(f"{_holder(before)} did not say that it ended; waiting up to {wait_s:g} s to see whether it lives")
        _watch(folder, before, wait_s)
    folder.write(LEASE, _encode(mine))
    _check(folder, mine)
    return before.session


def renew(folder: Folder, mine: Lease, *, is_over: bool = False) -> None:
    """Say that we live, or that we have ended; raises RunInUseError if somebody took the lease meanwhile."""
    _check(folder, mine)
    folder.write(LEASE, _encode(mine.model_copy(update={"renewed_at": datetime.now(UTC), "is_over": is_over})))


def read_lease(folder: Folder) -> Lease | None:
    """What is there; None if nothing is. Raises CheckpointError if it cannot be read."""
    if LEASE not in folder.names():
        return None
    try:
        return Lease.model_validate_json(folder.read(LEASE))
    except ValidationError as error:
        raise CheckpointError(f"{folder.url}/{LEASE} is no lease; delete it if no run works there") from error


def _check(folder: Folder, mine: Lease) -> None:
    found = read_lease(folder)
    if found is None or found.session != mine.session:
        raise RunInUseError(_in_use(folder, found))


def _watch(folder: Folder, before: Lease, wait_s: float) -> None:
    """Return once it is clear that nobody renews the lease."""
    end = time.monotonic() + wait_s
    while time.monotonic() < end:
        time.sleep(min(POLL_S, wait_s))
        now = read_lease(folder)
        if now is not None and now != before:
            raise RunInUseError(_in_use(folder, now))


def _is_gone(lease: Lease) -> bool:
    if _age_s(lease) > FORGOTTEN_S:
        return True
    return lease.host == _machine() and not process_exists(lease.pid)


def _machine() -> str:
    """Containers may share a name, and then have process numbers of their own."""
    space = Path("/proc/self/ns/pid")
    return f"{socket.gethostname()} {space.readlink()}" if space.is_symlink() else socket.gethostname()


def _age_s(lease: Lease) -> float:
    return (datetime.now(UTC) - lease.renewed_at).total_seconds()


def _holder(lease: Lease) -> str:
    return f"process {lease.pid} on {lease.host.split()[0]}, last heard of {max(0.0, _age_s(lease)):.0f} s ago,"


def _in_use(folder: Folder, lease: Lease | None) -> str:
    who = "another process" if lease is None else _holder(lease).rstrip(",")
    return f"{folder.url} is in use by {who}; wait for its end, end it, or choose another name (--set name=OTHER)"


def _encode(lease: Lease) -> bytes:
    return lease.model_dump_json(indent=1).encode()
