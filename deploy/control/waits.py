"""Waits for what a run that was steered does in its own time: grow, stand still, end. Each has a deadline."""

import time
from collections.abc import Callable, Mapping
from typing import Final, Literal

from common.errors import ControlError
from deploy.control.client import RunClient
from deploy.control.run_status import RunStatus
from deploy.control.view import state_of
from deploy.run_folder.address import RunEnd, read_end
from deploy.run_folder.lock import holder_pid, process_exists

POLL_S: Final = 0.25
OPTIONS: Final = {"rollout": "rollout workers", "reward": "reward replicas"}
"""By role: what the command line calls its members."""

Show = Callable[[RunStatus], None]


def await_size(client: RunClient, targets: Mapping[str, int], timeout_s: float, show: Show) -> RunStatus:
    """Wait until each pool has its target number active and nobody else on the way.

    Args:
        client: the run.
        targets: by role.
        timeout_s: deadline.
        show: told the status at every look.

    Raises:
        ControlError: the deadline passed, the target was changed again, or the run is ending.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        status = client.status()
        show(status)
        if all(_has_size(status, role, target) for role, target in targets.items()):
            return status
        if time.monotonic() > deadline:
            there = "\n".join(_lacking(status, role, target) for role, target in targets.items())
            raise ControlError(f"not there within {timeout_s:g} s; the run goes on trying\n{there}")
        time.sleep(POLL_S)


def await_pause(client: RunClient, wanted: Literal["paused", "none"], timeout_s: float, show: Show) -> RunStatus:
    """Wait until the run stands still, or goes on.

    Raises:
        ControlError: the deadline passed, somebody has ordered otherwise meanwhile, or the run is ending.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        status = client.status()
        show(status)
        if status.pause == wanted:
            return status
        _check_not_ending(status)
        if wanted == "paused" and status.pause == "none":
            why = "somebody else has resumed it" if status.step is not None else "PPO is over"
            raise ControlError(f"{status.run} does not pause any more: {why}")
        if time.monotonic() > deadline:
            doing = "nothing that it tells" if status.phase is None else status.phase
            raise ControlError(
                f"{status.run} is not there within {timeout_s:g} s: pause is {status.pause}, and it does {doing}; the "
                "order stands"
            )
        time.sleep(POLL_S)


def await_end(client: RunClient, timeout_s: float, show: Show) -> RunEnd | None:
    """Wait until the process has gone; returns how it ended, None if it left no word that can be read here.

    Raises:
        ControlError: the deadline passed.
    """
    deadline = time.monotonic() + timeout_s
    while not client.is_over():
        if time.monotonic() > deadline:
            if client.folder is None:
                raise ControlError(
                    f"{client.name} has not ended within {timeout_s:g} s; it was asked to, and still answers"
                )
            raise ControlError(
                f"{client.name} (process {client.pid}) has not ended within {timeout_s:g} s and is still at it; "
                f"`kill -9 {client.pid}` ends it at once, and loses what is in no checkpoint"
            )
        _look(client, show)
        time.sleep(POLL_S)
    if client.folder is None or client.pid is None:
        return None
    while process_exists(client.pid) and holder_pid(client.folder) is None and time.monotonic() < deadline:
        time.sleep(POLL_S)  # the folder is free, the process is about to exit
    return read_end(client.folder)


def _look(client: RunClient, show: Show) -> None:
    """Show the status, if it answers: it may go between two looks."""
    try:
        status = client.status()
    except ControlError:
        return
    show(status)


def _check_not_ending(status: RunStatus) -> None:
    if status.stopping is not None:
        raise ControlError(f"{status.run} is ending: {status.stopping}")


def _has_size(status: RunStatus, role: str, target: int) -> bool:
    """Whether the pool is as asked for; raises ControlError if it will never be."""
    pool = status.pools.get(role)
    _check_not_ending(status)
    if pool is None:
        raise ControlError(f"{status.run} has no {OPTIONS[role]} any more: it is in stage {status.stage}")
    if pool.target != target:
        raise ControlError(
            f"the target of {OPTIONS[role]} is {pool.target}, not {target}: somebody else has changed it"
        )
    return pool.active == target and all(member.state in ("active", "given_up") for member in pool.members)


def _lacking(status: RunStatus, role: str, target: int) -> str:
    pool = status.pools[role]
    others = [
        f"{member.slot} {state_of(member)}" + (f" ({member.last_error})" if member.last_error else "")
        for member in pool.members
        if member.state != "active"
    ]
    return f"{OPTIONS[role]}: {pool.active} of {target} active" + (f"; {'; '.join(others)}" if others else "")
