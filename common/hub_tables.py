"""Reads columns of a dataset of the Hugging Face hub through `datasets`, or says why not and what to do.

Which version a name stands for is asked for without downloading any data, and without network answered from what
`datasets` has in its cache; a whole commit and a folder on disk need no answer.
"""

import functools
import itertools
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import httpx2
import pyarrow as pa
import xxhash
from datasets.exceptions import DatasetsError

from common.data_config import HubSource
from common.errors import DataError
from common.hashing import file_hash
from common.table_diagnosis import unknown_column
from common.table_files import quiet

_COMMIT = re.compile(r"[0-9a-f]{40}")
_LOAD_ERRORS = (DatasetsError, OSError, ValueError, RuntimeError, LookupError, pa.ArrowException, httpx2.HTTPError)
"""What `datasets` raises for what is not there, does not fit, or cannot be reached."""


def hub_name(source: HubSource) -> str:
    """The dataset in words, for messages: `stanfordnlp/imdb@e6281661, split train`."""
    subset = "" if source.name is None else f" ({source.name})"
    revision = "" if source.revision is None else f"@{source.revision}"
    return f"{source.path}{revision}{subset}, split {source.split}"


def hub_version(source: HubSource) -> str:
    """What the data are, and change with them: the commit of the dataset, or a hash of a folder's files.

    A `revision` that is a whole commit is taken at its word; any other, as none, is resolved by the hub, which costs a
    few small requests. Where it cannot be reached, `datasets` names the newest copy in its cache.

    Raises:
        DataError: there is no such dataset, or it is neither to be reached nor in the cache.
    """
    folder = Path(source.path)
    if folder.is_dir():
        digest = xxhash.xxh3_128()
        for path in sorted(p for p in folder.rglob("*") if p.is_file()):
            digest.update(f"{path.relative_to(folder)} {file_hash(path)}\n".encode())
        return digest.hexdigest()
    if source.revision is not None and _COMMIT.fullmatch(source.revision):
        return source.revision
    with _loading(source):
        return _resolve(source.path, source.name, source.revision)


@functools.cache
def _resolve(path: str, name: str | None, revision: str | None) -> str:
    """Asked once a process: all stages that it runs see the same version, and a start stays quick."""
    return str(datasets.load_dataset_builder(path, name, revision=revision).hash)


def check_hub_columns(source: HubSource, wanted: Sequence[str]) -> None:
    """Look at the description of the dataset, as far as it has one, and read no data; of a whole commit nothing.

    Raises:
        DataError: there is no such dataset, subset, split or column.
    """
    if hub_version(source) == source.revision:
        return
    with _loading(source):
        info = datasets.load_dataset_builder(source.path, source.name, revision=source.revision).info
    if info.features is not None:
        _require(source, wanted, list(info.features))
    split = source.split.partition("[")[0]
    if info.splits and split not in info.splits and split != "all" and "+" not in split:
        raise DataError(f"{hub_name(source)}: there is no such split; there are {', '.join(info.splits)}")


def read_hub_columns(source: HubSource, wanted: Sequence[str]) -> dict[str, list[Any]]:
    """The wanted columns as Python values, all of one length, the first `take` rows or all.

    Raises:
        DataError: the dataset, or a column, is not there or cannot be read.
    """
    wanted = list(dict.fromkeys(wanted))
    with _loading(source):
        data = datasets.load_dataset(
            source.path, source.name, split=source.split, revision=source.revision, streaming=source.streaming
        )
        if source.streaming:
            rows = list(itertools.islice(data, source.take))
            present = list(dict.fromkeys(name for row in rows for name in row))
            columns = {name: [row.get(name) for row in rows] for name in wanted}
        else:
            present = data.column_names
            kept = len(data) if source.take is None else min(source.take, len(data))
            columns = {name: list(data[name][:kept]) for name in wanted if name in present}
    if not present:
        raise DataError(f"{hub_name(source)} holds no rows; it needs at least one")
    _require(source, wanted, present)
    return columns


def _require(source: HubSource, wanted: Sequence[str], present: Sequence[str]) -> None:
    for name in wanted:
        if name not in present:
            raise unknown_column(hub_name(source), name, present)


@contextmanager
def _loading(source: HubSource) -> Iterator[None]:
    try:
        with quiet():
            yield
    except _LOAD_ERRORS as error:
        if isinstance(error, DataError):
            raise
        said = str(error.__cause__ or error).strip().splitlines()
        reason = f"{type(error).__name__}: {said[0]}" if said else type(error).__name__
        raise DataError(f"cannot read {hub_name(source)}: {reason[:300]}; {_advice(source, error)}") from error


def _advice(source: HubSource, error: Exception) -> str:
    """What to do about it."""
    if Path(source.path).is_dir():
        return f"tried the folder {Path(source.path).resolve()}; look at its files, and at name and split"
    if not isinstance(error, (ConnectionError, httpx2.HTTPError)):
        return (
            "tried the hub; check path, name, split and revision on https://huggingface.co/datasets, and for gated "
            "data the token (hf auth login)"
        )
    cache = datasets.config.HF_DATASETS_CACHE
    if datasets.config.HF_HUB_OFFLINE:
        return (
            f"tried the cache {cache}, and not the hub, for HF_HUB_OFFLINE is set; unset it, or load the dataset once "
            "where there is a network and bring the cache or a folder of its files (path = that folder)"
        )
    return (
        f"tried the hub ({datasets.config.HF_ENDPOINT}) and the cache {cache}, and there is no folder {source.path}; "
        "check the network, or bring a folder of its files (path = that folder); HF_HUB_OFFLINE=1 spares the waiting "
        "where the cache holds the data"
    )
