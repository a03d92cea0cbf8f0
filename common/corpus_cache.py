"""Prepared data on disk, beside the `datasets` library's own cache: every stage and process reads the same sources.

An entry's name is a hash of the data's contents, of the settings, and of the code that prepares them, so that an entry
is never stale; delete the folder at any time.
"""

import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import xxhash

from common import cleaning, hub_tables, table_diagnosis, table_files
from common.hashing import file_hash
from common.table_files import quiet

Cells = dict[str, Any]
"""Columns by name: lists, or arrays of numbers, all of one length."""


def cache_entry(contents: Sequence[str], settings: str, code: str) -> Path:
    """Where what is prepared from these data with these settings is kept.

    Args:
        contents: hashes of the data.
        settings: all that decides what is read and how it is cut.
        code: path of the module that prepares.
    """
    modules = [code, *(module.__file__ for module in (cleaning, table_files, table_diagnosis, hub_tables))]
    parts = [settings, *contents, *(file_hash(Path(str(module))) for module in modules)]
    name = xxhash.xxh3_128_hexdigest("\n".join(parts).encode())
    return Path(datasets.config.HF_DATASETS_CACHE) / "minichatgpt" / name


def cached(entry: Path, prepare: Callable[[], Cells]) -> Cells:
    """What is kept there, numbers as arrays and all else as lists; prepared and kept where nothing is."""
    if not (entry / "state.json").is_file():
        cells = prepare()
        _write(entry, cells)
        return cells
    table = datasets.load_from_disk(str(entry)).data
    return {
        name: column.to_numpy() if pa.types.is_integer(column.type) else column.to_pylist()
        for name, column in zip(table.column_names, table.columns, strict=True)
    }


def _write(entry: Path, cells: Cells) -> None:
    """Keep prepared data; written beside and renamed, so that a reader sees all or nothing."""
    entry.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=entry.parent, prefix=".partial-"))
    with quiet():
        datasets.Dataset.from_dict(cells).save_to_disk(str(partial))
    try:
        os.replace(partial, entry)
    except OSError:
        shutil.rmtree(partial)
        if not entry.exists():  # else another process was first
            raise
