"""Asks a live run through its control channel: every route, typed, each call with a deadline.

Called by the command line; from Python it does the same. `deploy/control/target.py` finds the run; `control/waits.py`
waits for what takes its time.
"""

from pathlib import Path
from types import TracebackType
from typing import Any, Final, Literal, TypeVar

import httpx2
from pydantic import BaseModel, ValidationError

from common.errors import ControlError, RunEndingError
from deploy.control.models import LedgerStatus, PauseRequest, Workers
from deploy.control.run_status import (
    CheckpointInfo,
    CheckpointRequest,
    Problem,
    RunStatus,
    ScaleRequest,
    SettingsRequest,
    StopRequest,
)
from deploy.control.tokens import read_token
from deploy.run_folder.address import read_address, read_end
from deploy.run_folder.history import Events, Samples, Updates
from deploy.run_folder.lock import holder_pid, is_held, process_exists

ANSWER_TIMEOUT_S: Final = 30.0
"""Longest time until an answer; the run's own deadline is shorter, and says more."""
LOOKS: Final = 3
"""Attempts to see whether somebody listens: a server that ends breaks connections, kept ones and those that wait for
it, and only then refuses new ones."""

A = TypeVar("A", bound=BaseModel)
HOW_TO_GIVE: Final = (
    "give --token-file FILE, or put it in the environment variable MINICHATGPT_TOKEN; it is in control.token of the "
    "run folder (read.token where it is only to read)"
)


class RunClient:
    """A live run. Use as a context manager.

    Args:
        folder: of the run; None where the run is known by its URL alone.
        pid: process of its driver; None as well.
        url: of its control channel.
        token: that it wants to see; None: none, with which a run on loopback can be read.
    """

    def __init__(self, folder: Path | None, pid: int | None, url: str, token: str | None) -> None:
        self.folder = folder
        self.pid = pid
        self.name = url if folder is None else folder.name
        self._who = url if folder is None else f"{folder.name} (process {pid})"
        self._token = token
        self._http = httpx2.Client(
            base_url=url,
            headers={} if token is None else {"Authorization": f"Bearer {token}"},
            timeout=ANSWER_TIMEOUT_S,
            trust_env=False,  # a proxy has no business with the token
        )

    def __enter__(self) -> "RunClient":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._http.close()

    # --- looking

    def status(self) -> RunStatus:
        """The run as it is now; raises ControlError, as all calls do, if it does not answer or refuses."""
        return self._ask("GET", "/v1/run", RunStatus)

    def workers(self) -> Workers:
        """The rollout workers and reward replicas."""
        return self._ask("GET", "/v1/workers", Workers)

    def ledger(self) -> LedgerStatus:
        """Where the dispatched samples are."""
        return self._ask("GET", "/v1/ledger", LedgerStatus)

    def updates(self, *, after: int = 0, limit: int | None = None) -> Updates:
        """The newest updates later than that one."""
        return self._ask("GET", "/v1/updates", Updates, query={"after": after, "limit": limit})

    def samples(
        self,
        *,
        update: int | None = None,
        kind: Literal["best", "worst", "heldout"] | None = None,
        contains: str | None = None,
        limit: int | None = None,
    ) -> Samples:
        """The newest texts that fit."""
        query = {"update": update, "kind": kind, "contains": contains, "limit": limit}
        return self._ask("GET", "/v1/samples", Samples, query=query)

    def events(self, *, after: int = -1, limit: int | None = None) -> Events:
        """The newest events after the one of that number."""
        return self._ask("GET", "/v1/events", Events, query={"after": after, "limit": limit})

    # --- steering

    def scale(self, wanted: ScaleRequest) -> RunStatus:
        """Set how many members there shall be; returns before they are."""
        return self._ask("POST", "/v1/run/scale", RunStatus, wanted)

    def pause(self, wanted: PauseRequest | None = None) -> RunStatus:
        """Have the run stand still once the running update is done; returns before it does."""
        return self._ask("POST", "/v1/run/pause", RunStatus, wanted)

    def resume(self) -> RunStatus:
        """Have it go on."""
        return self._ask("POST", "/v1/run/resume", RunStatus)

    def change(self, wanted: SettingsRequest) -> RunStatus:
        """Change settings from the next update on."""
        return self._ask("PATCH", "/v1/run/settings", RunStatus, wanted)

    def checkpoint(self, wait_s: float) -> CheckpointInfo:
        """Have a checkpoint written; returns once it is verified."""
        wanted = CheckpointRequest(wait_s=wait_s)
        return self._ask("POST", "/v1/run/checkpoint", CheckpointInfo, wanted, timeout_s=wait_s + ANSWER_TIMEOUT_S)

    def stop(self, wanted: StopRequest) -> RunStatus:
        """Ask the run to end; returns before it has."""
        return self._ask("POST", "/v1/run/stop", RunStatus, wanted)

    # --- whether it is there

    def is_over(self) -> bool:
        """Whether the process that this client was made for has gone, or works in this folder no more.

        Of a run that is known by its URL alone: whether nobody listens there.
        """
        if self.folder is not None and self.pid is not None:
            return not is_held(self.folder) or holder_pid(self.folder) != self.pid or not process_exists(self.pid)
        for _ in range(LOOKS):
            try:
                self._http.get("/healthz")
            except httpx2.ConnectError:
                return True
            except (httpx2.ReadError, httpx2.WriteError, httpx2.RemoteProtocolError):
                continue
            except httpx2.HTTPError:
                return False
            return False
        return False

    def _ask(
        self,
        method: str,
        path: str,
        kind: type[A],
        body: BaseModel | None = None,
        *,
        query: dict[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> A:
        if method != "GET":
            self._check_token()
        sent = None if body is None else body.model_dump(mode="json", exclude_none=True)
        asked = {name: value for name, value in (query or {}).items() if value is not None}
        limit = timeout_s or ANSWER_TIMEOUT_S
        try:
            answer = self._http.request(method, path, params=asked, json=sent, timeout=limit)
        except httpx2.TimeoutException as error:
            raise ControlError(f"{self._who} has not answered {path} within {limit:g} s; its driver hangs") from error
        except httpx2.HTTPError as error:
            if self.folder is not None and self.is_over():
                raise ControlError(not_running(self.folder)) from error
            raise ControlError(f"{self._who} cannot be reached: {error}") from error
        if answer.status_code == httpx2.codes.UNAUTHORIZED and self._token is None:
            raise ControlError(f"reading {self._who} needs its token: {HOW_TO_GIVE}")
        if not answer.is_success:
            raise _refusal(answer)
        try:
            return kind.model_validate_json(answer.content)
        except ValidationError as error:
            raise ControlError(
                f"{self._who} answers {path} with something that this version does not understand: {error}"
            ) from error

    def _check_token(self) -> None:
        """Raises ControlError if there is none to steer with; says why."""
        if self._token is not None:
            return
        if self.folder is not None:
            read_token(self.folder)
        raise ControlError(f"steering {self._who} needs its token: {HOW_TO_GIVE}")


def _refusal(answer: httpx2.Response) -> ControlError:
    try:
        problem = Problem.model_validate_json(answer.content)
    except ValidationError:
        return ControlError(f"refused with HTTP {answer.status_code}: {answer.text[:200]}")
    return (
        RunEndingError(problem.message) if problem.error == RunEndingError.__name__ else ControlError(problem.message)
    )


def not_running(folder: Path) -> str:
    """How the last run in the folder ended, or that it was killed."""
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
