"""The driver's small files of a run whose folder is at a URL: fetched before it starts, sent while it lasts.

    start   take the lease ─▶ the workplace becomes what is at the URL
    run     every few seconds, at each stage's end, before a checkpoint counts: what changed here goes there
    end     all of it, the report too ─▶ give the lease back

What is at the URL is the truth. Only where this very workplace was the last to work on the run (`workplace.json` says
so) is it newer: then nothing is fetched, and what an outage of the store had kept back is sent.

Not here: models and trajectories, which are sent by who writes them (`common/run_place.py`), and checkpoints. Secrets,
locks and half-written files stay where they are.
"""

import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Final, Literal

from rich.console import Console

from common.errors import CheckpointError, ConfigError, MiniChatGPTError, RunInUseError
from common.run_place import LISTS, files_in, listed_folders, local_copy, shared
from common.storage import Folder
from deploy.exit_codes import FAILED
from deploy.run_folder.address import END
from deploy.run_folder.files import read_json, write_json
from deploy.run_folder.lease import LEASE, LEASE_S, RENEW_S, new_lease, renew, take_lease
from deploy.stop_signal import StopSignal

WORKPLACE: Final = "workplace.json"
SENT_BY_OTHERS: Final = frozenset({"models", "trajectories", "checkpoints", LISTS})
"""Folders that are not ours to send."""
STAY: Final = frozenset({WORKPLACE, LEASE, "control.token", "read.token", ".lock"})
EVERY_S: Final = 5.0
"""Time between two looks at what has changed."""
SHARE: Final = 10
"""A look that took long is followed by so many times its length of rest."""
LONGEST_PAUSE_S: Final = 60.0
"""Between two attempts, while the store takes nothing."""
LAST_ATTEMPTS: Final = 5
"""At the end of the run."""

Stamp = tuple[int, int]
"""Size and time of change of a file."""


def is_ours(name: str) -> bool:
    """Whether the driver sends a file of the run folder."""
    path = PurePosixPath(name)
    return not (path.parts[0] in SENT_BY_OTHERS or name in STAY or path.suffix in (".partial", ".sock"))


def plan(here: Mapping[str, Stamp], there: Mapping[str, Stamp | None]) -> tuple[list[str], list[str]]:
    """What is to be removed at the URL, and then what to be sent, in that order, so that it holds what is here.

    What says that something is done goes first and comes last: a driver that dies half-way leaves no record of a stage
    beside files from before it.

    Args:
        here: files of the workplace.
        there: files at the URL, with the stamp of what was sent; None where that is not known.
    """
    changed = sorted(here, key=lambda name: (name == END, name.startswith("stages/"), name))
    return sorted(there.keys() - here.keys()), [name for name in changed if there.get(name) != here[name]]


def files_of(folder: Path) -> dict[str, Stamp]:
    """The files that the driver sends; one that goes meanwhile is left out."""
    found = {}
    for name in filter(is_ours, files_in(folder)):
        try:
            state = (folder / name).stat()
        except FileNotFoundError:
            continue
        found[name] = (state.st_size, state.st_mtime_ns)
    return found


class Mirror:
    """Context manager: a run works in a workplace, and its files are at the URL for which that stands.

    A folder that stands for no URL is where it belongs already: then nothing at all is done.

    Args:
        folder: of the run, here.
        stop: asked to end the run where another driver took it over.
        note: told what an operator wants to read.
        wait_s: so long another's lease is watched before it is taken for free.
    """

    def __init__(self, folder: Path, *, stop: StopSignal, note: Callable[[str], None], wait_s: float = LEASE_S) -> None:
        self.folder = folder.absolute()
        self.url = shared(self.folder)
        self._stop = stop
        self._note = note
        self._wait_s = wait_s
        self._lease = new_lease(secrets.token_hex(8))
        self._lock = threading.Lock()
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._keep, name="mirror", daemon=True)
        self._sent: dict[str, Stamp | None] = {}
        self._is_lost = False

    @property
    def is_needed(self) -> bool:
        """Whether the folder stands for a URL."""
        return self.url != str(self.folder)

    def __enter__(self) -> "Mirror":
        if self.is_needed:
            self._there = Folder.at(self.url)
            try:
                self._begin()
            except CheckpointError as error:
                raise ConfigError(
                    f"the run folder {self.url} cannot be used: {error}. Check its name, its rights, and where this "
                    "machine finds credentials and endpoint (for s3://: AWS_ACCESS_KEY_ID, AWS_ENDPOINT_URL, or a role)"
                ) from error
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> Literal[False]:
        if not self.is_needed:
            return False
        self._ending.set()
        self._thread.join()
        kept_back = self._finish()
        if kept_back and error is None:
            raise CheckpointError(kept_back)
        if kept_back and error is not None:
            error.add_note(kept_back)
        return False

    def show_where(self, console: Console) -> None:
        """Say that all is at the URL, where it is."""
        if self.is_needed:
            console.print(f"All of it is at {self.url}", markup=False, highlight=False, soft_wrap=True)

    def flush(self) -> None:
        """Bring the URL to what is here; raises CheckpointError if the store does not take it."""
        if not self.is_needed:
            return
        with self._lock:
            if self._is_lost:
                raise CheckpointError(f"{self.url} is another driver's now")
            here = files_of(self.folder)
            to_remove, to_send = plan(here, self._sent)
            for name in to_remove:
                self._there.remove(name)
                del self._sent[name]
            for name in to_send:
                if (data := _whole_lines(self.folder / name)) is not None:
                    self._there.write(name, data)
                    self._sent[name] = here[name]

    def stage_ended(self) -> None:
        """The same, where training can go on without it."""
        try:
            self.flush()
        except CheckpointError as error:
            self._note(f"{error}; it is sent again")

    def _begin(self) -> None:
        path = self.folder / WORKPLACE
        known = str(read_json(path).get("session")) if path.is_file() else None
        before = take_lease(self._there, self._lease, known=known, wait_s=self._wait_s, say=self._note)
        if before and before == known:
            self._sent = {name: None for name in self._there.all_names() if is_ours(name)}
        else:
            self._fetch()
        write_json(path, {"url": self.url, "session": self._lease.session})

    def _fetch(self) -> None:
        """Make the workplace what is at the URL; trajectories are needed by no run that goes on."""
        wanted, models = [name for name in self._there.all_names() if is_ours(name)], listed_folders(self.url)
        shutil.rmtree(self.folder / "trajectories", ignore_errors=True)
        for name in files_of(self.folder).keys() - set(wanted):
            (self.folder / name).unlink()
        for model in (self.folder / "models").glob("*"):
            if f"models/{model.name}" not in models:
                shutil.rmtree(model)
        for name in wanted:
            path = self.folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            self._there.get(name, path)
        for model_name in models:
            local_copy(f"{self.url}/{model_name}")
        self._sent = dict(files_of(self.folder))

    def _keep(self) -> None:
        """Send and renew until the run ends; a store that takes nothing is asked less and less often."""
        pause, failures, renewed = EVERY_S, 0, time.monotonic()
        while not self._ending.wait(pause):
            start = time.monotonic()
            try:
                if start - renewed > RENEW_S:
                    renew(self._there, self._lease)
                    renewed = start
                self.flush()
            except RunInUseError as error:
                self._is_lost = True
                self._stop.request(f"another driver took the run over: {error}", FAILED)
                return
            except MiniChatGPTError as error:
                failures += 1
                if failures == 1:
                    self._note(f"{error}; training goes on, and it is sent again")
                pause = min(LONGEST_PAUSE_S, EVERY_S * 2**failures)
            else:
                if failures:
                    self._note(f"{self.url} takes files again")
                failures, pause = 0, max(EVERY_S, SHARE * (time.monotonic() - start))

    def _finish(self) -> str:
        """Send the rest and give the lease back; says what could not be sent."""
        pause = 1.0
        for attempt in range(LAST_ATTEMPTS):
            try:
                self.flush()
                renew(self._there, self._lease, is_over=True)
                return ""
            except (CheckpointError, RunInUseError) as error:
                cause = error
            if self._is_lost or isinstance(cause, RunInUseError):
                break
            if attempt < LAST_ATTEMPTS - 1:
                time.sleep(pause)
                pause *= 2
        _, left = plan(files_of(self.folder), self._sent)
        return (
            f"{len(left)} files are not at {self.url} yet ({', '.join(left[:8])}): {cause}. They are in {self.folder}; "
            "the same command on this machine sends them"
        )


def _whole_lines(path: Path) -> bytes | None:
    """A file's content, without a last line that is just being written; None if it is gone."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return None
    return data[: data.rfind(b"\n") + 1] if path.suffix == ".jsonl" else data
