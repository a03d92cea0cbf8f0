"""Run folders at a URL: where this machine works on them, and how a folder or file goes there and comes back.

    s3://bucket/runs/NAME/models/sft    <─ share ── / ── local_copy ─>    WORKPLACES/s3/bucket/runs/NAME/models/sft

All code works with paths, as ever. Those below `workplaces()` stand for a URL, which can be read off the path: so
nobody has to be told of it, and a path that lies anywhere else is left alone. Between processes that may be on two
machines the URL travels (`shared`), for each machine may have its workplaces elsewhere.

A folder at a URL has a list of its files beside it, under `.files/`: written last and removed first, so that a folder
which is just being written is never taken for a whole one. Each process checks what it has by hash, fetches what
differs, and renames it into place: several may do so at once.

Not here: the driver's small files (`deploy/run_folder/mirror.py`), and checkpoints, which are written to their URL
directly (`checkpoint_store.py`). Every error of a store is a CheckpointError that names the file.
"""

import dataclasses
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from huggingface_hub import constants

from common.errors import CheckpointError, ConfigError
from common.records import ModelPaths
from common.storage import Folder, StoredFile

LISTS = ".files"
"""Folder of a run folder at a URL, with a list of the files of each folder that was sent."""
PART = ".part-"
"""Begins the name of what is on its way here."""


def workplaces() -> Path:
    """Where this machine works on what lies at URLs: beside what else is cached, as HF_HOME or HF_ASSETS_CACHE say."""
    return Path(constants.HF_ASSETS_CACHE, "minichatgpt")


def workplace(url: str) -> Path:
    """The folder of this machine that stands for a URL; a local path stands for itself. Makes nothing.

    Raises:
        ConfigError: nobody here knows this kind of URL, or no path can stand for it.
    """
    if "://" not in url:
        return Path(url)
    folder = Folder.at(url)
    if folder.is_local:
        return Path(folder.path)
    scheme, _, rest = url.rstrip("/").partition("://")
    parts = rest.split("/")
    if not scheme.isalnum() or not all(parts) or {".", ".."} & set(parts) or any(c in rest for c in "?#*:@"):
        raise ConfigError(f"{url} is no place for runs; give a URL like s3://bucket/runs, without any of ?, #, *, :, @")
    return Path(workplaces(), scheme, *parts)


def shared(where: str | Path) -> str:
    """The URL for which a path stands; one that stands for none, or the name of a model on a hub, as it is."""
    path, root = Path(where), workplaces()
    if not path.is_relative_to(root) or path == root:
        return str(where)
    scheme, *parts = path.relative_to(root).parts
    return f"{scheme}://{'/'.join(parts)}"


def shared_models(paths: ModelPaths) -> ModelPaths:
    """The same models, for a process that may be on another machine."""
    return ModelPaths(shared(paths.policy), _each(shared, paths.reward_model), _each(shared, paths.judge))


def local_models(paths: ModelPaths) -> ModelPaths:
    """What another process named by `shared_models`, brought here."""
    return ModelPaths(local_copy(paths.policy), _each(local_copy, paths.reward_model), _each(local_copy, paths.judge))


def files_in(folder: Path) -> list[str]:
    """Files of a folder and of those below, as paths from there, sorted; folders may come and go meanwhile."""
    found = [Path(place, name) for place, _, names in os.walk(folder) for name in names]
    return sorted(path.relative_to(folder).as_posix() for path in found)


def copies(path: Path) -> Iterator[Folder]:
    """A folder here and, where it stands for a URL, there."""
    yield Folder.at(str(path.absolute()))
    if (url := shared(path.absolute())) != str(path.absolute()):
        yield Folder.at(url)


def share(path: Path) -> None:
    """Put a folder or file where its URL says; nothing is to be done where it stands for none.

    Raises:
        CheckpointError: the store does not take it.
    """
    path = path.absolute()
    if (url := shared(path)) == str(path):
        return
    if path.is_file():
        Folder.at(url.rpartition("/")[0]).put(path.name, path)
        return
    there, here = Folder.at(url), Folder.at(str(path))
    lists, name = _list_of(url)
    if name in lists.names():
        lists.remove(name)
    files = {file: here.measure(file) for file in files_in(path)}
    for stale in set(there.all_names()) - files.keys():
        there.remove(stale)
    for file in files:
        there.put(file, path / file)
    text = json.dumps({name: dataclasses.asdict(file) for name, file in files.items()}, indent=1)
    lists.write(name, text.encode())


def local_copy(where: str) -> str:
    """The path of a folder that is named by a URL, once its files are here; what is no URL, as it is.

    Raises:
        CheckpointError: it is not there as a whole, or cannot be read.
    """
    if "://" not in where:
        return where
    folder, there = workplace(where), Folder.at(where)
    files = _listed(where)
    if files is None:
        raise CheckpointError(f"{where} is not there, or not as a whole; the stage that leaves it must run again")
    for name, expected in files.items():
        if not _is_here(folder / name, expected):
            _bring(there, name, folder / name, expected)
    for name in files_in(folder):
        if name not in files and PART not in name:
            (folder / name).unlink(missing_ok=True)
    return str(folder)


def listed_folders(url: str) -> list[str]:
    """Which folders of a run folder at a URL are there as a whole, as `models/sft`."""
    return [f"models/{name.removesuffix('.json')}" for name in Folder.at(f"{url}/{LISTS}/models").names()]


class Outbox:
    """Sends files in the background, in order. What a store does not take stays, and is tried again with the next."""

    def __init__(self) -> None:
        self._waiting: list[Path] = []
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="outbox")

    def put(self, path: Path) -> None:
        """Send a file, unless it stands for no URL; returns at once."""
        if shared(path.absolute()) != str(path.absolute()):
            self._waiting.append(path)
            self._thread.submit(self._try)

    def flush(self) -> None:
        """Return once all is sent; raises CheckpointError if the store does not take it, and keeps what is left."""
        if self._waiting:
            self._thread.submit(self._send).result()

    def forget(self) -> None:
        """Send nothing of what is left; returns once nothing is on its way."""
        if self._waiting:
            self._thread.submit(self._waiting.clear).result()

    def _try(self) -> None:
        try:
            self._send()
        except CheckpointError:
            return  # it is still waiting, and whoever flushes is told

    def _send(self) -> None:
        while self._waiting:
            if self._waiting[0].exists():
                share(self._waiting[0])
            self._waiting.pop(0)


def _each(place: Callable[[str], str], where: str | None) -> str | None:
    return None if where is None else place(where)


def _list_of(url: str) -> tuple[Folder, str]:
    """Where the list of a folder's files is."""
    run, models, name = url.rsplit("/", 2)
    return Folder.at(f"{run}/{LISTS}/{models}"), f"{name}.json"


def _listed(url: str) -> dict[str, StoredFile] | None:
    """The files of a folder; None where there is no list."""
    lists, name = _list_of(url)
    if name not in lists.names():
        return None
    try:
        return {file: StoredFile(**facts) for file, facts in json.loads(lists.read(name)).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{lists.url}/{name} is no list of files; the stage must run again") from error


def _is_here(path: Path, expected: StoredFile) -> bool:
    return path.is_file() and Folder.at(str(path.parent)).measure(path.name) == expected


def _bring(there: Folder, name: str, path: Path, expected: StoredFile) -> None:
    """Fetch beside, check, rename: who reads the file sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=PART, dir=path.parent) as spool:
        part = Path(spool, path.name)
        there.get(name, part)
        Folder.at(spool).verify(path.name, expected)
        part.replace(path)
