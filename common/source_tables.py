"""From a data source to tables: the columns that are wanted, the rows that `where` keeps, and where each row stands.

files | package ─▶ table_files ─┐
hub ─────────────▶ hub_tables ──┼─▶ Table: columns, rows ─▶ corpus, demonstrations
inline records ─────────────────┘
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.data_config import Columns, DataSource, FilesSource, HubSource, InlineSource, PackageSource
from common.errors import DataError
from common.hashing import file_hash
from common.hub_tables import hub_name, hub_version, read_hub_columns
from common.row_config import DemonstrationRows, PreferenceRows
from common.table_diagnosis import place, unknown_column
from common.table_files import find_files, find_in_package, read_columns

WHERE_IT_IS = frozenset(
    {"paths", "package", "file", "install", "path", "name", "split", "revision", "streaming", "take"}
)
"""Settings that say where data are; what they are is in `content_hashes`."""


@dataclass(frozen=True, slots=True)
class Table:
    """One file or dataset."""

    name: str
    """For messages."""
    columns: dict[str, list[Any]]
    """Cells by column, all of one length."""
    rows: list[int]
    """Rows, from 1, that `where` keeps."""
    locate: Callable[[int], str]
    """A row to the words that lead to it."""

    def cells(self, column: str) -> list[Any]:
        """Of the rows that are kept."""
        return [self.columns[column][row - 1] for row in self.rows]


def source_name(source: DataSource) -> str:
    """The source in words, for messages."""
    match source:
        case InlineSource():
            return "inline records" if source.records else "inline texts"
        case HubSource():
            return hub_name(source)
        case FilesSource() | PackageSource():
            return ", ".join(map(str, source_paths(source)))


def source_paths(source: FilesSource | PackageSource) -> list[Path]:
    """The files; raises DataError where one is missing."""
    if isinstance(source, FilesSource):
        return find_files(source.paths)
    return [find_in_package(source.package, source.file, source.install)]


def content_hashes(source: DataSource) -> list[str]:
    """What changes with the data, wherever they are; those written in the configuration are a setting and not in it.

    Raises:
        DataError: the data are not there.
    """
    match source:
        case InlineSource():
            return []
        case HubSource():
            return [hub_version(source), f"{source.name} {source.split} {source.take}"]
        case FilesSource() | PackageSource():
            return [file_hash(path) for path in source_paths(source)]


def read_tables(source: DataSource) -> list[Table]:
    """The wanted columns of each file, or of the dataset, of the rows that `where` keeps.

    Raises:
        DataError: something cannot be read, a column is absent, or `where` keeps no row.
    """
    match source:
        case InlineSource():
            return [_records(source)]
        case HubSource():
            name = hub_name(source)
            columns = read_hub_columns(source, source.column_names())
            tables = [Table(name, columns, _selected(columns, source), lambda row: f"{name}, row {row}")]
        case FilesSource() | PackageSource():
            tables = [_file(path, source) for path in source_paths(source)]
    if not any(table.rows for table in tables):
        raise _nothing_selected(tables, source)
    return tables


def _records(source: InlineSource) -> Table:
    assert isinstance(source.rows, DemonstrationRows | PreferenceRows), "records are rows, says the configuration"
    wanted = source.rows.column_names()
    for row, record in enumerate(source.records, start=1):
        for name in wanted:
            if name not in record:
                raise unknown_column(f"inline records, row {row},", name, list(record))
    columns: dict[str, list[Any]] = {name: [record[name] for record in source.records] for name in wanted}
    rows = list(range(1, len(source.records) + 1))
    return Table("inline records", columns, rows, lambda row: f"inline records, row {row}")


def _file(path: Path, source: Columns) -> Table:
    columns = read_columns(path, source.column_names())
    return Table(str(path), columns, _selected(columns, source), lambda row: place(path, row))


def _selected(columns: dict[str, list[Any]], source: Columns) -> list[int]:
    """Rows, from 1, that `where` keeps; csv cells are strings, so values are compared as they are written."""
    rows: Sequence[int] = range(1, _num_rows(columns) + 1)
    for column, legal in source.where.items():
        cells, written = columns[column], str(legal)
        rows = [row for row in rows if cells[row - 1] == legal or str(cells[row - 1]) == written]
    return list(rows)


def _num_rows(columns: dict[str, list[Any]]) -> int:
    return len(next(iter(columns.values())))


def _nothing_selected(tables: Sequence[Table], source: Columns) -> DataError:
    names = ", ".join(table.name for table in tables)
    if not source.where:
        return DataError(f"{names} holds no rows; it needs at least one")
    asked = ", ".join(f"{column} = {value!r}" for column, value in source.where.items())
    seen = {column: {str(cell) for table in tables for cell in table.columns[column]} for column in source.where}
    held = "; ".join(
        f"{column} holds {', '.join(sorted(values)[:10])}{', …' if len(values) > 10 else ''}"
        for column, values in seen.items()
    )
    num_rows = sum(_num_rows(table.columns) for table in tables)
    return DataError(f"{names}: where ({asked}) keeps none of {num_rows} rows: {held}; change where")
