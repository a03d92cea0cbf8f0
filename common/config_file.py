"""TOML and `--set a.b=c` to a RunConfig, and back. Imports pydantic, never torch."""

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from common.config import RunConfig
from common.errors import ConfigError


def load_config(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a TOML file, apply overrides, check everything.

    Args:
        path: the file.
        overrides: as in `ppo.clip_eps=0.1` or `rollout.workers=4`; values are TOML, bare words are strings.

    Raises:
        ConfigError: the file is missing or no TOML, or a setting is not legal; one line per problem.
    """
    if not path.is_file():
        near = ", ".join(sorted(p.name for p in path.parent.glob("*.toml"))) if path.parent.is_dir() else ""
        raise ConfigError(f"{path} does not exist" + (f"; its folder has {near}" if near else ""))
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is no TOML: {error}") from error
    for override in overrides:
        _apply(document, override)
    return parse_config(document, where=str(path))


def parse_config(document: Mapping[str, Any], *, where: str) -> RunConfig:
    """Check a document; raises ConfigError with one line per problem."""
    try:
        return RunConfig.model_validate(document)
    except ValidationError as error:
        raise ConfigError(f"{where} cannot be run:\n{_explain(error)}") from error


def _explain(error: ValidationError) -> str:
    lines = []
    for problem in error.errors(include_url=False):
        place = ".".join(str(part) for part in problem["loc"]) or "the run"
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "union_tag_not_found":
            message = (
                'type is missing, and the other keys depend on it; add type = "..." (an unknown one names the legal)'
            )
        got = problem["input"]
        shown = "" if problem["type"] == "value_error" or isinstance(got, dict) else f" (got {got!r})"
        lines.append(f"  {place}: {message}{shown}")
    return "\n".join(lines)


def _apply(document: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override!r} is not of the form a.b=value, as in --set ppo.clip_eps=0.1")
    *tables, last = key.strip().split(".")
    table = document
    for name in tables:
        table = table.setdefault(name, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {override!r}: {name} is a value, not a table")
    table[last] = _value(text.strip())


def _value(text: str) -> Any:
    try:
        document = tomllib.loads(f"value = {text}")
    except tomllib.TOMLDecodeError:
        return text
    return document["value"] if len(document) == 1 else text


def to_toml(config: RunConfig) -> str:
    """The resolved configuration, every default included, as TOML that `load_config` reads back to an equal one."""
    lines: list[str] = []
    _table(lines, [], config.model_dump(mode="json", exclude_none=True))
    return "\n".join(lines).strip() + "\n"


def _table(lines: list[str], path: list[str], table: Mapping[str, Any]) -> None:
    tables = {key: value for key, value in table.items() if _is_list_of_tables(value)}
    plain = {key: value for key, value in table.items() if not isinstance(value, dict) and key not in tables}
    if path and (plain or not table):
        lines += ["", f"[{'.'.join(_key(part) for part in path)}]"]
    lines += [f"{_key(key)} = {toml_value(value)}" for key, value in plain.items()]
    for key, value in table.items():
        if isinstance(value, dict):
            _table(lines, [*path, key], value)
    for key, rows in tables.items():
        for row in rows:
            lines += ["", f"[[{'.'.join(_key(part) for part in [*path, key])}]]"]
            lines += [f"{_key(name)} = {toml_value(value)}" for name, value in row.items()]


def _is_list_of_tables(value: Any) -> bool:
    """Written as tables of their own, so that another can be added below."""
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) for item in value)


def _key(key: str) -> str:
    return key if key.replace("_", "").replace("-", "").isalnum() and key.isascii() else toml_value(key)


def toml_value(value: Any) -> str:
    """A TOML value; JSON's strings, numbers and booleans are TOML too."""
    if isinstance(value, list):
        return "[" + ", ".join(toml_value(item) for item in value) + "]"
    if isinstance(value, dict) and value:
        return "{ " + ", ".join(f"{_key(key)} = {toml_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, float) and math.isinf(value):
        return "inf" if value > 0 else "-inf"
    return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
