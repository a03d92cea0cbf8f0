"""Why a table cannot be used, in words that lead to the place: file, row, line, byte, column, and what to change.

Rows count from 1 and leave out a csv file's header and empty lines; lines count from 1 and leave out nothing. Called by
`common.table_files` and `common.corpus`; reads files again, slowly, once something is known to be wrong.
"""

import codecs
import csv
import difflib
import io
import itertools
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from common.errors import DataError

FORMATS = {".csv": "csv", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
_BLOCK_BYTES = 1 << 24


def place(path: Path, row: int) -> str:
    """`reviews.csv, row 3 (line 5)`: where the row is, for an error message; without the line where it says no more."""
    line = next((line for number, line in _rows(path) if number == row), row)
    return f"{path}, row {row}" if line == row else f"{path}, row {row} (line {line})"


def unknown_column(path: Path | str, name: str, present: Sequence[str]) -> DataError:
    """An error that lists the columns that are there."""
    close = difflib.get_close_matches(name, present, n=1)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return DataError(f"{path} has no column {name!r}: {hint}its columns are {', '.join(map(repr, present))}")


def file_missing(path: Path) -> DataError:
    """An error that names similar files in the folder, or the first folder on the way that is not there."""
    absent = path
    while not absent.parent.is_dir() and absent.parent != absent:
        absent = absent.parent
    what = f"{path} does not exist" if absent == path else f"{path} does not exist, for there is no folder {absent}"
    return DataError(f"{what}; {_neighbours(absent)}")


def nothing_matches(pattern: Path) -> DataError:
    """An error that names what the pattern's folder holds."""
    return DataError(f"no file matches {pattern}; {_neighbours(pattern)}")


def _neighbours(path: Path) -> str:
    folder = path.parent
    names = sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []
    close = difflib.get_close_matches(path.name, names, n=3)
    if close:
        return f"did you mean {' or '.join(close)}? (in {folder.resolve()})"
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    return f"{folder.resolve()} holds: {shown or 'nothing'}"


def check_utf8(path: Path) -> None:
    """Read a text file once, from beginning to end.

    Raises:
        DataError: a byte is not UTF-8; names row, line, byte offset and, where it can be told, the column.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    done = 0
    with path.open("rb") as file:
        while block := file.read(_BLOCK_BYTES):
            pending = len(decoder.getstate()[0])
            try:
                decoder.decode(block)
            except UnicodeDecodeError as error:
                raise _broken_utf8(path, done - pending + error.start, error) from error
            done += len(block)
    try:
        decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        raise _broken_utf8(path, done - len(error.object), error) from error


def _broken_utf8(path: Path, offset: int, error: UnicodeDecodeError) -> DataError:
    with path.open("rb") as file:
        before = file.read(offset)
    line = before.count(b"\n") + 1
    row, column = _cell_after(path, before.decode("utf-8-sig"))
    byte = error.object[error.start]
    where = f"row {row} (line {line}, byte offset {offset})" if row else f"the header (byte offset {offset})"
    return DataError(
        f"{path}, {where}{f', column {column!r}' if column else ''}: byte 0x{byte:02x} is not UTF-8 ({error.reason}); "
        f"save the file as UTF-8, as in: iconv -f WINDOWS-1252 -t UTF-8 {path.name} > fixed{path.suffix}"
    )


def _cell_after(path: Path, before: str) -> tuple[int, str | None]:
    """Row and column of the character that follows `before`; the column is known for csv files only."""
    if path.suffix.lower() != ".csv":
        return sum(1 for line in f"{before}x".split("\n") if line.strip()), None
    try:
        records = list(_csv_records(io.StringIO(f"{before}x", newline="")))
    except csv.Error:
        return 0, None
    header, cell = records[0][1], len(records[-1][1]) - 1
    return len(records) - 1, header[cell] if len(records) > 1 and cell < len(header) else None


def check_csv_head(path: Path) -> list[str]:
    """Names of the columns; a column without a name gets the one that pandas gives it.

    Raises:
        DataError: names repeat, or the first row has more cells than there are names.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        try:
            head = list(itertools.islice(_csv_records(file), 2))
        except csv.Error as error:
            raise DataError(f"{path}, line 1: the header is not csv ({error}); look for an unclosed quote") from error
    if not head:
        raise DataError(f"{path} holds no rows; it needs a header and at least one row")
    header = [name or f"Unnamed: {index}" for index, name in enumerate(head[0][1])]
    repeated = sorted({name for name in header if header.count(name) > 1})
    if repeated:
        raise DataError(f"{path}, line 1: column {repeated[0]!r} is there twice; rename one of the two")
    if len(head) > 1 and len(head[1][1]) > len(header):
        raise _wrong_width(path, 1, head[1][0], len(head[1][1]), len(header))
    return header


def _wrong_width(path: Path, row: int, line: int, got: int, legal: int) -> DataError:
    return DataError(
        f"{path}, row {row} (line {line}): {got} cells where the header has {legal}; "
        f'put cells with commas, quotes or line breaks between double quotes (a quote inside is written "")'
    )


def explain_unreadable(path: Path, error: Exception, wanted: Sequence[str]) -> DataError:
    """An error that names the first row of a csv or parquet file that cannot be read; `error` comes from the reader."""
    said = str(error.__cause__ or error).strip().splitlines()
    reason = said[0] if said else type(error).__name__
    if FORMATS[path.suffix.lower()] == "csv":
        return _explain_csv(path, reason)
    if isinstance(error, UnicodeDecodeError):
        return _explain_parquet_text(path, wanted, reason)
    return DataError(f"{path} is not a parquet file that can be read: {reason}; write it again")


def _explain_parquet_text(path: Path, wanted: Sequence[str], reason: str) -> DataError:
    table = pq.read_table(path, columns=list(wanted))
    for name in wanted:
        for row, value in enumerate(table[name], start=1):
            try:
                value.as_py()
            except UnicodeDecodeError as error:
                return DataError(f"{path}, row {row}, column {name!r}: not UTF-8 ({error}); write the column as UTF-8")
    return DataError(f"{path} holds text that is not UTF-8: {reason}; write it as UTF-8")


def _explain_csv(path: Path, reason: str) -> DataError:
    row, line, width = 0, 1, 0
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file, strict=True)
        try:
            for cells in reader:
                if width and len(cells) > width:
                    return _wrong_width(path, row, line, len(cells), width)
                row += _is_filled(cells)
                width = width or len(cells)
                line = reader.line_num + 1
        except csv.Error as error:
            return DataError(
                f"{path}, row {row} (line {line}): not csv ({error}); look for a double quote that is not closed "
                'there, or that is part of the text and not written ""'
            )
    return DataError(f"{path} cannot be read as csv: {reason}")


def json_keys(path: Path, wanted: Sequence[str]) -> list[str]:
    """Keys of the first rows, up to the one with which all that is wanted was seen; of all rows if it never is.

    Raises:
        DataError: something on the way is not JSON or no object; names row and line.
    """
    keys: dict[str, None] = {}
    with path.open(encoding="utf-8-sig") as file:
        for line in filter(str.strip, file):
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                row = None
            if not isinstance(row, dict):  # a list over several lines, or a fault
                return list(dict.fromkeys(key for value in json_objects(path) for key in value))
            keys.update(dict.fromkeys(row))
            if keys.keys() >= set(wanted):
                break
    return list(keys)


def json_objects(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines, or of one that is a JSON list, read with the standard library.

    Raises:
        DataError: something is not JSON or no object; names row and line.
    """
    text = path.read_text(encoding="utf-8-sig")
    if not text.lstrip().startswith("["):
        lines = [(line, content) for line, content in enumerate(text.split("\n"), start=1) if content.strip()]
        return [_json_object(path, row, line, content) for row, (line, content) in enumerate(lines, start=1)]
    try:
        values = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, line {error.lineno}, column {error.colno}: not JSON ({error.msg}); mend it"
        ) from error
    for row, value in enumerate(values, start=1):
        if not isinstance(value, dict):
            raise DataError(f"{path}, row {row}: {str(value)[:40]!r} is no JSON object; write {{…}}")
    return list(values)


def _json_object(path: Path, row: int, line: int, content: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}, row {row} (line {line}), character {error.colno}: not JSON ({error.msg}); "
            "each line must be one whole JSON object"
        ) from error
    if not isinstance(value, dict):
        raise DataError(f"{path}, row {row} (line {line}): {content[:40]} is no JSON object; write {{…}}")
    return value


def _is_filled(cells: Sequence[str]) -> bool:
    return len(cells) > 1 or (len(cells) == 1 and bool(cells[0].strip()))


def _csv_records(lines: Iterable[str]) -> Iterator[tuple[int, list[str]]]:
    """(line where it begins, cells) of the header and of each row."""
    reader = csv.reader(lines)
    line = 1
    for cells in reader:
        if _is_filled(cells):
            yield line, cells
        line = reader.line_num + 1


def _rows(path: Path) -> Iterator[tuple[int, int]]:
    """(row, line where it begins) in a csv file or in JSON lines; ends at the first that cannot be parsed."""
    kind = FORMATS[path.suffix.lower()]
    if kind == "parquet":
        return
    with path.open(encoding="utf-8-sig", newline="") as file:
        if kind == "csv":
            try:
                for row, (line, _) in enumerate(_csv_records(file)):
                    yield row, line
            except csv.Error:
                return
        elif not file.read(1).startswith("["):
            file.seek(0)
            filled = (line for line, content in enumerate(file, start=1) if content.strip())
            yield from enumerate(filled, start=1)
