"""Folders on any file system that fsspec knows, for checkpoints: a local path, or a URL as `s3://bucket/run`.

What is written to a local path is on the disk when a method returns: files and folders are synced, and a folder can be
renamed at one stroke. Object stores take each object whole or not at all, and have no rename. Which of the two a folder
is matters to `checkpoint_store.py` alone.

Not here: what the files mean (`checkpoint.py`). Every error is a CheckpointError that names the file.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import xxhash
from fsspec.core import url_to_fs
from fsspec.implementations.local import LocalFileSystem
from safetensors import SafetensorError

from common.errors import CheckpointError, ConfigError

try:
    from botocore.exceptions import BotoCoreError
except ImportError:  # s3fs is not installed, so that nothing raises it
    BotoCoreError = OSError

STORE_ERRORS: tuple[type[Exception], ...] = (OSError, BotoCoreError)
"""What file systems raise: s3fs lets through what botocore says of missing credentials, say."""
_FAULTS: tuple[type[Exception], ...] = (*STORE_ERRORS, SafetensorError)

_BLOCK_BYTES = 1 << 25
_FULL = (errno.ENOSPC, errno.EDQUOT)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file's content, as it must be found again."""

    size_bytes: int
    xxh3_128: str
    """Hash of the content, in hexadecimal digits."""

    def __str__(self) -> str:
        return f"{self.size_bytes} bytes of hash {self.xxh3_128}"

    @classmethod
    def of(cls, data: bytes) -> "StoredFile":
        """What a file with this content looks like."""
        return cls(len(data), xxhash.xxh3_128_hexdigest(data))


@dataclass(frozen=True, slots=True)
class Folder:
    """One folder; it need not exist."""

    url: str
    """As given, or the absolute path of a local one."""
    path: str
    """Within its file system."""
    fs: Any
    """An fsspec file system."""

    @classmethod
    def at(cls, url: str) -> "Folder":
        """The folder at a path or URL; asks no network.

        Raises:
            ConfigError: nobody here knows this kind of URL.
        """
        try:
            fs, path = url_to_fs(url, use_listings_cache=False)
        except (ValueError, ImportError) as error:
            raise ConfigError(
                f"{url} cannot be opened: {error}; give a path, or a URL whose fsspec package is installed on all "
                "machines of the run (`pip install 'minichatgpt[s3]'` for s3://, gcsfs for gs://)"
            ) from error
        return cls(path if isinstance(fs, LocalFileSystem) else url.rstrip("/"), path, fs)

    @property
    def is_local(self) -> bool:
        """Whether it can be synced and renamed."""
        return isinstance(self.fs, LocalFileSystem)

    @property
    def name(self) -> str:
        """Last part of the path."""
        return self.path.rpartition("/")[2]

    def child(self, name: str) -> "Folder":
        """A folder in this one."""
        return Folder(f"{self.url}/{name}", f"{self.path}/{name}", self.fs)

    def names(self) -> list[str]:
        """What lies in it, sorted; nothing where it does not exist."""
        with self._access("", "be listed"):
            try:
                paths = self.fs.ls(self.path, detail=False)
            except FileNotFoundError:
                return []
        here = self.path.strip("/")
        return sorted(path.rstrip("/").rpartition("/")[2] for path in paths if path.strip("/") != here)

    def make(self) -> None:
        """Create it, unless it is there."""
        with self._access("", "be created"):
            self.fs.makedirs(self.path, exist_ok=True)

    def read(self, name: str) -> bytes:
        """A file's content."""
        with self._access(name, "be read"):
            data: bytes = self.fs.cat_file(f"{self.path}/{name}")
        return data

    def write(self, name: str, data: bytes) -> None:
        """Write a file; a local one is on the disk afterwards."""
        with self._access(name, "be written", needed_bytes=len(data)):
            self.fs.pipe_file(f"{self.path}/{name}", data)
            if self.is_local:
                _sync(f"{self.path}/{name}")

    def put(self, name: str, path: Path) -> None:
        """Write a file with the content of a local one."""
        with self._access(name, "be written", needed_bytes=path.stat().st_size):
            self.fs.put_file(str(path), f"{self.path}/{name}")

    def get(self, name: str, path: Path) -> None:
        """Copy a file to a local path that ends in its name.

        Raises:
            CheckpointError: it cannot be read; or its name leads out of the folder, which only somebody who wants to
                write elsewhere on this machine would give a file of a store.
        """
        if ".." in PurePosixPath(name).parts or PurePosixPath(name).is_absolute():
            raise CheckpointError(f"{self.url} names a file {name!r}, which leads out of it; nothing was read")
        with self._access(name, "be read"):
            self.fs.get_file(f"{self.path}/{name}", str(path))

    def create(self, name: str, data: bytes) -> bool:
        """Write a file where there is none of that name; False if there is one. Some stores cannot tell, and write."""
        with self._access(name, "be written", needed_bytes=len(data)):
            try:
                self.fs.pipe_file(f"{self.path}/{name}", data, mode="create")
            except FileExistsError:
                return False
        return True

    def all_names(self) -> list[str]:
        """The files in it and in all folders below, as paths from here, sorted."""
        with self._access("", "be listed"):
            try:
                paths = self.fs.find(self.path)
            except FileNotFoundError:
                return []
        return sorted(path.strip("/").removeprefix(self.path.strip("/")).lstrip("/") for path in paths)

    def size(self, name: str) -> int:
        """Bytes of a file."""
        with self._access(name, "be read"):
            size: int = self.fs.size(f"{self.path}/{name}")
        return size

    def measure(self, name: str) -> StoredFile:
        """Read a file, without holding more than a part of it."""
        digest, length, size = xxhash.xxh3_128(), 0, self.size(name)
        with self._access(name, "be read"):
            for start in range(0, size, _BLOCK_BYTES):
                block = self.fs.cat_file(f"{self.path}/{name}", start=start, end=min(start + _BLOCK_BYTES, size))
                digest.update(block)
                length += len(block)
        return StoredFile(length, digest.hexdigest())

    def verify(self, name: str, expected: StoredFile) -> None:
        """Raise CheckpointError unless a file is as expected."""
        found = self.measure(name)
        if found != expected:
            raise CheckpointError(f"{self.url}/{name} is damaged: {found} where {expected} was written")

    def remove(self, name: str) -> None:
        """Remove a file, or a folder with all that lies in it; nothing where there is none."""
        with self._access(name, "be removed"):
            try:
                self.fs.rm(f"{self.path}/{name}", recursive=True)
            except FileNotFoundError:
                return

    def rename(self, name: str, new_name: str) -> None:
        """Give a folder in this one another, free name, at one stroke; local only."""
        with self._access(name, "be renamed"):
            os.rename(f"{self.path}/{name}", f"{self.path}/{new_name}")

    def sync(self) -> None:
        """Bring what lies in it under which name to the disk; nothing is to be done elsewhere."""
        if self.is_local:
            with self._access("", "be synced"):
                _sync(self.path)

    @contextmanager
    def outgoing(self, name: str, *, needed_bytes: int) -> Iterator[Path]:
        """A path to write a large file to: the file's own, or a temporary one that is sent at the end."""
        with self._access(name, "be written", needed_bytes=needed_bytes):
            if self.is_local:
                yield Path(self.path, name)
                _sync(f"{self.path}/{name}")
                return
            with tempfile.TemporaryDirectory() as spool:
                yield Path(spool, name)
                self.fs.put_file(str(Path(spool, name)), f"{self.path}/{name}")

    @contextmanager
    def incoming(self, name: str) -> Iterator["Folder"]:
        """A local folder that holds a large file: this one, or a temporary one with a copy of it."""
        if self.is_local:
            yield self
            return
        with tempfile.TemporaryDirectory() as spool:
            with self._access(name, "be read"):
                self.fs.get_file(f"{self.path}/{name}", str(Path(spool, name)))
            yield Folder(self.url, spool, LocalFileSystem())

    @contextmanager
    def _access(self, name: str, what: str, *, needed_bytes: int = 0) -> Iterator[None]:
        """Turn what file systems and safetensors raise into CheckpointError."""
        where = f"{self.url}/{name}" if name else self.url
        try:
            yield
        except FileNotFoundError as error:
            raise CheckpointError(f"{where} is missing, so it cannot {what}") from error
        except _FAULTS as error:
            if _is_full(error):
                if self.is_local and name:
                    Path(self.path, name).unlink(missing_ok=True)  # of the half that fitted nobody has a use
                free = _free_bytes(Path(self.path if self.is_local else tempfile.gettempdir()))
                raise CheckpointError(
                    f"no room for {where}: {needed_bytes} bytes are needed and {free} are free; older checkpoints are "
                    "whole. Free some space, lower ppo.keep_last or ppo.keep_best, or set ppo.checkpoint_url"
                ) from error
            raise CheckpointError(f"{where} cannot {what}: {type(error).__name__}: {error}") from error


def _is_full(error: Exception) -> bool:
    """Safetensors tells an error of the system by its text only."""
    if isinstance(error, OSError):
        return error.errno in _FULL
    return any(f"(os error {number})" in str(error) for number in _FULL)


def _free_bytes(path: Path) -> int:
    """Of the file system on which a path lies, or will lie."""
    return shutil.disk_usage(next(place for place in (path, *path.parents) if place.exists())).free


def _sync(path: str) -> None:
    """Force a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
