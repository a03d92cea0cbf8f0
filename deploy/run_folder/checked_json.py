"""JSON and TOML of a run folder, read and checked: an error names the file and, where known, the line."""

import json
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from common.errors import DataError

Numbers = Mapping[str, float | None]
Record = TypeVar("Record")


class Shape(BaseModel):
    """Keys that are not known are left out, so that an older page can show a newer run."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


def read_jsonl(path: Path, adapter: TypeAdapter[Record]) -> Iterator[Record]:
    """The lines of a file, none where it is absent; raises DataError at the first that cannot be understood."""
    for number, line in enumerate(_text(path).split("\n") if path.exists() else [], start=1):
        if line.strip():
            yield _parse(line, adapter, path, first_line=number)


def read_json_as(path: Path, adapter: TypeAdapter[Record]) -> Record:
    """A file that is one document; raises DataError if it cannot be understood."""
    return _parse(_text(path), adapter, path, first_line=1)


def _parse(text: str, adapter: TypeAdapter[Record], path: Path, *, first_line: int) -> Record:
    try:
        loaded = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{first_line + error.lineno - 1}: not JSON: {error.msg} at column {error.colno}; "
            "was the run stopped while writing? Delete the line, or run the stage again"
        ) from error
    try:
        return adapter.validate_python(loaded)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        line = first_line + _line_of(first["loc"], text)
        where = ".".join(str(part) for part in first["loc"]) or "the line"
        raise DataError(f"{path}:{line}: {where}: {first['msg']}; got {_short(first['input'])}") from error


def _line_of(location: Sequence[int | str], text: str) -> int:
    """Index of the line in which the first key of `location` that the text holds is written, else 0."""
    for key in reversed(location):
        at = text.find(f'"{key}"')
        if at >= 0:
            return text.count("\n", 0, at)
    return 0


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def read_toml(path: Path) -> str | None:
    """The text of a file, which is TOML; None where it is absent."""
    if not path.exists():
        return None
    text = _text(path)
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        _, _, after = str(error).partition("at line ")
        line = after.split(",")[0] if after else str(text.count("\n") + 1)
        raise DataError(f"{path}:{line}: not TOML: {error}") from error
    return text


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8: {error.reason} at byte {error.start}") from error
