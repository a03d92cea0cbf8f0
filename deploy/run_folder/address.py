"""How others find a live run, and how a run that is over ended: run.json and ended.json of the run folder.

run.json is there while the run lasts. Nobody else writes these files.
"""

import difflib
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from common.errors import DataError, MiniChatGPTError, RunStopped
from deploy.exit_codes import FAILED, FINISHED, INTERRUPTED
from deploy.run_folder.at_url import is_url, on_disks_only, spelt
from deploy.run_folder.files import write_json

ADDRESS, END = "run.json", "ended.json"


class RunAddress(BaseModel):
    """Where a run is and what it serves."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    pid: int
    """Process of the driver."""
    host: str
    """Name of the machine on which it runs."""
    started_at: datetime
    """When it started, UTC."""
    control_url: str | None = None
    """The control channel, on that machine's loopback; None where it is off."""


@contextmanager
def announce(folder: Path, *, control_url: str | None = None) -> Iterator[None]:
    """Write run.json, and take it away when the block ends; within another block, add to it and take that away."""
    before = read_address(folder)
    if before is None or before.pid != os.getpid():  # of a process that was killed
        before = None
        now = RunAddress(pid=os.getpid(), host=socket.gethostname(), started_at=datetime.now(UTC))
    else:
        now = before
    _write(folder / ADDRESS, now.model_copy(update={"control_url": control_url or now.control_url}))
    try:
        yield
    finally:
        if before is None:
            (folder / ADDRESS).unlink(missing_ok=True)
        else:
            _write(folder / ADDRESS, before)


def read_address(folder: Path) -> RunAddress | None:
    """What run.json says, if it is there; raises DataError if it is damaged."""
    try:
        return RunAddress.model_validate_json((folder / ADDRESS).read_bytes())
    except FileNotFoundError:
        return None
    except ValidationError as error:
        raise DataError(f"{folder / ADDRESS} is no address of a run; delete it if the run is over: {error}") from error


class RunEnd(BaseModel):
    """How a run ended."""

    model_config = ConfigDict(frozen=True, use_attribute_docstrings=True)

    reason: str
    """`finished`, who stopped it, or the error."""
    exit_code: int
    """Of the process."""
    ended_at: datetime
    """When, UTC."""


class RecordEnd:
    """Context manager: writes how the block ended to ended.json. A process that is killed leaves none."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / END

    def __enter__(self) -> None:
        self._path.unlink(missing_ok=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        _write(self._path, _end_of(error))
        return False


def read_end(folder: Path) -> RunEnd | None:
    """How the last run in the folder ended; None if one runs, or was killed, or the file is damaged."""
    try:
        return RunEnd.model_validate_json((folder / END).read_bytes())
    except (OSError, ValidationError):
        return None


def find_folder(name: str, runs: Path) -> Path:
    """The folder of a run that is named by its name or by its folder; raises DataError with those that are there."""
    if is_url(name):
        raise DataError(f"{spelt(name)}: {on_disks_only(spelt(name))}")
    folder = Path(name) if Path(name).is_dir() else runs / name
    if not folder.is_dir():
        raise DataError(f"{folder} does not exist; {runs_near(name, runs)}")
    return folder


def runs_near(name: str, runs: Path) -> str:
    """For an error: the runs that are there, the one that may be meant first."""
    there = sorted(p.name for p in runs.glob("[!.]*") if p.is_dir())
    close = difflib.get_close_matches(name, there, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return f"{hint}runs in {runs}: {', '.join(there)}" if there else f"there is no run in the folder {runs}"


def _end_of(error: BaseException | None) -> RunEnd:
    match error:
        case None:
            reason, code = "finished", FINISHED
        case RunStopped():
            reason, code = error.reason, error.exit_code
        case SystemExit(code=int(code)):
            reason = "exit"
        case KeyboardInterrupt():
            reason, code = "interrupted", INTERRUPTED
        case MiniChatGPTError():
            reason, code = f"{type(error).__name__}: {error}", FAILED
        case _:
            reason, code = f"internal error: {type(error).__name__}", FAILED
    return RunEnd(reason=reason, exit_code=code, ended_at=datetime.now(UTC))


def _write(path: Path, record: BaseModel) -> None:
    write_json(path, record.model_dump(mode="json"))
