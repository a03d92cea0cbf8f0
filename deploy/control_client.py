"""Finds a live run of this machine by its name or folder, and asks it through its control channel.

Called by the command line; from Python it does the same. Every call and every wait has a deadline.
"""

import socket
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Final, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from common.errors import ControlError
from deploy.control_token import read_token
from deploy.run_address import RunEnd, find_folder, read_address, read_end
from deploy.run_history import Events, Samples, Updates
from deploy.run_lock import holder_pid, is_held, process_exists
from deploy.run_status import CheckpointInfo, CheckpointRequest, Problem, RunStatus, ScaleRequest, StopRequest

ANSWER_TIMEOUT_S: Final = 30.0
"""Longest time until an answer; the run's own deadline is shorter, and says more."""
POLL_S: Final = 0.25
OPTIONS: Final = {"rollout": "rollout workers", "reward": "reward replicas"}
"""By role: what the command line calls its members."""

A = TypeVar("A", bound=BaseModel)
Show = Callable[[RunStatus], None]


def find_run(name: str, runs: Path) -> "RunClient":
    """The live run of that name in `runs`, or in that folder.

    Raises:
        DataError: there is no such folder; the message names those that are there.
        ControlError: nobody runs there, or whoever does cannot be asked; the message says how the last run ended.
    """
    folder = find_folder(name, runs)
    pid = holder_pid(folder)
    if not is_held(folder) or (pid is not None and not process_exists(pid)):
        raise ControlError(_not_running(folder))
    address = read_address(folder)
    if address is not None and address.host != socket.gethostname():
        raise ControlError(
            f"{folder.name} runs on {address.host}, and its control channel can be reached only there; run the command "
            "on that machine"
        )
    if address is None or address.control_url is None:
        raise ControlError(
            f"{folder.name} runs (process {pid}) and has no control channel: it is about to start or to end, or "
            "control.enabled is false"
        )
    return RunClient(folder, address.pid, address.control_url, read_token(folder))


class RunClient:
    """A live run. Use as a context manager.

    Args:
        folder: of the run.
        pid: process of its driver.
        url: of its control channel.
        token: that it wants to see.
    """

    def __init__(self, folder: Path, pid: int, url: str, token: str) -> None:
        self.folder = folder
        self.pid = pid
        self._http = httpx2.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {token}"},
            timeout=ANSWER_TIMEOUT_S,
            trust_env=False,  # a proxy has no business with a token for loopback
        )

    def __enter__(self) -> "RunClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()

    def status(self) -> RunStatus:
        """The run as it is now; raises ControlError, as all calls do, if it does not answer or refuses."""
        return self._ask("GET", "/v1/run", RunStatus)

    def updates(self, *, after: int) -> Updates:
        """Updates later than that one."""
        return self._ask("GET", f"/v1/updates?after={after}", Updates)

    def events(self, *, after: int) -> Events:
        """Events after the one of that number."""
        return self._ask("GET", f"/v1/events?after={after}", Events)

    def samples(self, *, limit: int) -> Samples:
        """The newest samples."""
        return self._ask("GET", f"/v1/samples?limit={limit}", Samples)

    def pause(self) -> RunStatus:
        """Have the run stand still once the running update is done."""
        return self._ask("POST", "/v1/run/pause", RunStatus)

    def resume(self) -> RunStatus:
        """Have it go on."""
        return self._ask("POST", "/v1/run/resume", RunStatus)

    def scale(self, wanted: ScaleRequest) -> RunStatus:
        """Set how many members there shall be; returns before they are."""
        return self._ask("POST", "/v1/run/scale", RunStatus, wanted)

    def checkpoint(self, wait_s: float) -> CheckpointInfo:
        """Have a checkpoint written; returns once it is verified."""
        wanted = CheckpointRequest(wait_s=wait_s)
        return self._ask("POST", "/v1/run/checkpoint", CheckpointInfo, wanted, timeout_s=wait_s + ANSWER_TIMEOUT_S)

    def stop(self, wanted: StopRequest) -> RunStatus:
        """Ask the run to end; returns before it has."""
        return self._ask("POST", "/v1/run/stop", RunStatus, wanted)

    def is_over(self) -> bool:
        """Whether the process that this client was made for has gone, or works in this folder no more."""
        return not is_held(self.folder) or holder_pid(self.folder) != self.pid or not process_exists(self.pid)

    def await_size(self, targets: Mapping[str, int], timeout_s: float, show: Show) -> RunStatus:
        """Wait until each pool has its target number active and nobody else on the way.

        Args:
            targets: by role.
            timeout_s: deadline.
            show: told the status at every look.

        Raises:
            ControlError: the deadline passed, the target was changed again, or the run is ending.
        """
        deadline = time.monotonic() + timeout_s
        while True:
            status = self.status()
            show(status)
            if all(_has_size(status, role, target) for role, target in targets.items()):
                return status
            if time.monotonic() > deadline:
                there = "\n".join(_lacking(status, role, target) for role, target in targets.items())
                raise ControlError(f"not there within {timeout_s:g} s; the run goes on trying\n{there}")
            time.sleep(POLL_S)

    def await_end(self, timeout_s: float, show: Show) -> RunEnd | None:
        """Wait until the process has gone; returns how it ended, None if it left no word.

        Raises:
            ControlError: the deadline passed.
        """
        deadline = time.monotonic() + timeout_s
        while not self.is_over():
            if time.monotonic() > deadline:
                raise ControlError(
                    f"{self.folder.name} (process {self.pid}) has not ended within {timeout_s:g} s and is still at it; "
                    f"`kill -9 {self.pid}` ends it at once, and loses what is in no checkpoint"
                )
            self._look(show)
            time.sleep(POLL_S)
        while process_exists(self.pid) and holder_pid(self.folder) is None and time.monotonic() < deadline:
            time.sleep(POLL_S)  # the folder is free, the process is about to exit
        return read_end(self.folder)

    def _look(self, show: Show) -> None:
        """Show the status, if it answers: it may go between two looks."""
        try:
            status = self.status()
        except ControlError:
            return
        show(status)

    def _ask(
        self, method: str, path: str, kind: type[A], body: BaseModel | None = None, *, timeout_s: float | None = None
    ) -> A:
        sent = None if body is None else body.model_dump(mode="json", exclude_none=True)
        limit = timeout_s or ANSWER_TIMEOUT_S
        try:
            answer = self._http.request(method, path, json=sent, timeout=limit)
        except httpx2.TimeoutException as error:
            raise ControlError(
                f"{self.folder.name} (process {self.pid}) has not answered {path} within {limit:g} s; its driver hangs"
            ) from error
        except httpx2.HTTPError as error:
            if self.is_over():
                raise ControlError(_not_running(self.folder)) from error
            raise ControlError(f"{self.folder.name} (process {self.pid}) cannot be reached: {error}") from error
        if answer.is_error:
            raise ControlError(_refusal(answer))
        try:
            return kind.model_validate_json(answer.content)
        except ValidationError as error:
            raise ControlError(
                f"{self.folder.name} answers {path} with something that this version does not understand: {error}"
            ) from error


def _refusal(answer: httpx2.Response) -> str:
    try:
        return Problem.model_validate_json(answer.content).message
    except ValidationError:
        return f"refused with HTTP {answer.status_code}: {answer.text[:200]}"


def _not_running(folder: Path) -> str:
    name, end = folder.name, read_end(folder)
    if end is not None:
        when = f"{end.ended_at:%Y-%m-%d %H:%M:%S} UTC"
        return f"{name} does not run; it ended at {when} with exit code {end.exit_code}: {end.reason}"
    address = read_address(folder)
    if address is not None:
        return (
            f"{name} does not run: process {address.pid} is gone and left no word, so it was killed; "
            "`minichatgpt run` with the same configuration goes on from the newest checkpoint"
        )
    return f"{name} does not run, and no run in {folder} is on record"


def _has_size(status: RunStatus, role: str, target: int) -> bool:
    """Whether the pool is as asked for; raises ControlError if it will never be."""
    pool = status.pools.get(role)
    if status.stopping is not None:
        raise ControlError(f"{status.run} is ending: {status.stopping}")
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
        f"{member.slot} {member.state}" + (f" ({member.last_error})" if member.last_error else "")
        for member in pool.members
        if member.state != "active"
    ]
    return f"{OPTIONS[role]}: {pool.active} of {target} active" + (f"; {'; '.join(others)}" if others else "")
