"""Prepared texts on disk, beside the `datasets` library's own cache: every stage and process reads the same sources.

An entry's name is a hash of the files' contents, of the settings, and of the code that prepares texts, so that an entry
is never stale; delete the folder at any time.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import datasets
import numpy as np
import numpy.typing as npt
import xxhash

from common import cleaning, table_diagnosis, table_files
from common.hashing import file_hash
from common.table_files import quiet

Columns = tuple[list[str], npt.NDArray[np.int64] | None, npt.NDArray[np.uint64]]


def cache_entry(paths: Sequence[Path], settings: str, code: str) -> Path:
    """Where the texts prepared from these files with these settings are kept.

    Args:
        paths: the files.
        settings: all that decides what is read and how it is cut.
        code: path of the module that prepares.
    """
    modules = [code, cleaning.__file__, table_files.__file__, table_diagnosis.__file__]
    parts = [settings, *map(file_hash, paths), *(file_hash(Path(module)) for module in modules)]
    name = xxhash.xxh3_128_hexdigest("\n".join(parts).encode())
    return Path(datasets.config.HF_DATASETS_CACHE) / "minichatgpt" / name


def read_entry(entry: Path) -> Columns | None:
    """Texts, labels and document ids; None if there is no such entry."""
    if not (entry / "state.json").is_file():
        return None
    table = datasets.load_from_disk(str(entry)).data
    labels = table.column("label").to_numpy() if "label" in table.column_names else None
    return table.column("text").to_pylist(), labels, table.column("document_id").to_numpy()


def write_entry(entry: Path, columns: Columns) -> None:
    """Keep prepared texts; written beside and renamed, so that a reader sees all or nothing."""
    texts, labels, document_ids = columns
    content = {"text": texts, "document_id": document_ids} | ({} if labels is None else {"label": labels})
    entry.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=entry.parent, prefix=".partial-"))
    with quiet():
        datasets.Dataset.from_dict(content).save_to_disk(str(partial))
    try:
        os.replace(partial, entry)
    except OSError:
        shutil.rmtree(partial)
        if not entry.exists():  # else another process was first
            raise
