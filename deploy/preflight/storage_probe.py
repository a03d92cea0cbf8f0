"""A note that two processes exchange through a place, to see that both read and write the same one.

    driver: leave_note ─▶ elsewhere: answer_probe (reads it, leaves one of its own) ─▶ driver: read_note, clear

The part that runs elsewhere imports fsspec and little more, so that a fresh process answers at once.
"""

import glob
import os
import shutil
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fsspec.implementations.local import LocalFileSystem

from common.errors import ConfigError
from common.storage import STORE_ERRORS, Folder

_PROBLEMS: tuple[type[Exception], ...] = (ConfigError, *STORE_ERRORS)


@dataclass(frozen=True, slots=True)
class Probe:
    """What another process is asked to try."""

    nonce: str
    """Of this exchange; names the notes and is their content."""
    places: tuple[str, ...]
    """Absolute paths and URLs in which the driver left a note."""
    writes: bool
    """Whether an answer shall be written too."""
    reader: str = ""
    """Names the answer; different for each process that is asked."""
    inputs: tuple[str, ...] = ()
    """Paths and patterns, as the configuration has them, of which something must be there."""


@dataclass(frozen=True, slots=True)
class ProbeAnswer:
    """What the other process found."""

    host: str
    folder: str
    """Its working directory, in which relative paths are looked up."""
    problems: Mapping[str, str]
    """By place: what could not be done there."""
    missing: tuple[str, ...]
    """Inputs that are not there."""
    free_bytes: Mapping[str, int]
    """By local place: room on its disk."""


def open_place(url: str) -> tuple[Any, str]:
    """File system and path of a place.

    Raises:
        ConfigError: nobody here knows this kind of URL.
    """
    folder = Folder.at(url)
    return folder.fs, folder.path


def is_local(fs: Any) -> bool:
    """Whether its paths are those of this machine's disks."""
    return isinstance(fs, LocalFileSystem)


def leave_note(url: str, nonce: str, author: str) -> None:
    """Write a note; raises OSError as the file system does."""
    fs, path = open_place(url)
    fs.makedirs(path, exist_ok=True)
    fs.pipe_file(f"{path}/{_name(nonce, author)}", nonce.encode())


def read_note(url: str, nonce: str, author: str) -> bool:
    """Whether the note is there with its content; raises OSError as the file system does."""
    fs, path = open_place(url)
    try:
        found: bytes = fs.cat_file(f"{path}/{_name(nonce, author)}")
    except FileNotFoundError:
        return False
    return found == nonce.encode()


def clear_notes(url: str, nonce: str, authors: Sequence[str]) -> None:
    """Remove the notes of this exchange."""
    fs, path = open_place(url)
    for author in authors:
        try:
            fs.rm_file(f"{path}/{_name(nonce, author)}")
        except FileNotFoundError:
            continue


def free_bytes(path: str) -> int:
    """Room on the disk on which a local path lies, or will lie."""
    there = Path(path)
    return shutil.disk_usage(next(place for place in (there, *there.parents) if place.exists())).free


def answer_probe(probe: Probe) -> ProbeAnswer:
    """Read the driver's note in each place, and leave an answer where one is wanted."""
    problems: dict[str, str] = {}
    free: dict[str, int] = {}
    for url in probe.places:
        try:
            if not read_note(url, probe.nonce, "driver"):
                problems[url] = "the driver wrote there, and here it is not to be seen"
            elif probe.writes:
                leave_note(url, probe.nonce, probe.reader)
            fs, path = open_place(url)
            if is_local(fs):
                free[url] = free_bytes(path)
        except _PROBLEMS as error:
            problems[url] = f"{type(error).__name__}: {error}"
    missing = tuple(path for path in probe.inputs if not Path(path).exists() and not glob.glob(path, recursive=True))
    return ProbeAnswer(socket.gethostname(), os.getcwd(), problems, missing, free)


def _name(nonce: str, author: str) -> str:
    return f".preflight-{nonce}-{author}"
