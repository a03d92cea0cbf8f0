"""Every setting of a configuration, read off its declaration: name, type in plain words, default, bounds, meaning.

    RunConfig ─▶ tables ─▶ Section (a table, or one kind of it by its `type`) ─▶ Field

`deploy/config_docs.py` makes docs/configuration.md of it, `minichatgpt config fields` looks settings up in it.
"""

import inspect
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from common.config import RunConfig
from common.config_base import CHANGEABLE, Config
from common.config_file import toml_value

_PLAIN = {bool: "true or false", int: "whole number", float: "number", str: "text"}
_SIGNS = {annotated_types.Ge: "≥", annotated_types.Gt: ">", annotated_types.Le: "≤", annotated_types.Lt: "<"}


@dataclass(frozen=True, slots=True)
class Field:
    """One setting."""

    name: str
    """Its key."""
    type: str
    """In plain words, bounds included."""
    default: str
    """As in TOML; `required`, or `none` where nothing stands for something."""
    may_change: bool
    """Whether a run may go on with another value."""
    meaning: str
    """What its declaration says."""


@dataclass(frozen=True, slots=True)
class Section:
    """A table, or one kind of it."""

    places: tuple[str, ...]
    """Where it stands, as in `pretrain`, `data.NAME` or `reward_service.scorers[]`; empty for the top level."""
    tag: str
    """Value of its `type`; empty where there is only one kind."""
    meaning: str
    """What its declaration says."""
    fields: tuple[Field, ...]


def sections() -> list[Section]:
    """All tables of a configuration, in the order of their declaration; each once, wherever it stands."""
    places: dict[type[Config], list[str]] = {}
    for place, table in _tables(RunConfig, ""):
        known = places.setdefault(table, [])
        if place not in known:
            known.append(place)
    return [_section(table, tuple(found)) for table, found in places.items()]


def _tables(table: type[Config], place: str) -> Iterator[tuple[str, type[Config]]]:
    yield place, table
    for name, field in table.model_fields.items():
        for suffix, inner in _tables_in(field.annotation):
            yield from _tables(inner, f"{place}.{name}{suffix}".removeprefix("."))


def _tables_in(annotation: Any) -> Iterator[tuple[str, type[Config]]]:
    """Tables within a type, and what their place adds to the name of the field."""
    if inspect.isclass(annotation) and issubclass(annotation, Config):
        yield "", annotation
    suffix = {dict: ".NAME", list: "[]"}.get(get_origin(annotation), "")
    for argument in () if get_origin(annotation) is Literal else get_args(annotation):
        yield from ((f"{suffix}{deeper}", table) for deeper, table in _tables_in(argument))


def _section(table: type[Config], places: tuple[str, ...]) -> Section:
    fields = tuple(_field(name, field) for name, field in table.model_fields.items() if name != "type")
    return Section(places, tag_of(table), one_line(table.__doc__), fields)


def tag_of(table: type[Config]) -> str:
    """The value of `type` by which a table is told from others of its union; empty if it has none."""
    field = table.model_fields.get("type")
    return str(get_args(field.annotation)[0]) if field is not None else ""


def _field(name: str, field: FieldInfo) -> Field:
    bounds = _bounds(field.metadata)
    return Field(
        name=name,
        type=", ".join(part for part in (_words(field.annotation), bounds) if part),
        default=_default(field),
        may_change=any(mark is CHANGEABLE for mark in field.metadata),
        meaning=one_line(field.description),
    )


def _words(annotation: Any) -> str:
    """A type in plain words."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return ", ".join(part for part in (_words(arguments[0]), _bounds(list(arguments[1:]))) if part)
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in arguments)
    if origin in (Union, types.UnionType):
        some = [argument for argument in arguments if argument is not type(None)]
        tags = [tag_of(one) for one in some if inspect.isclass(one) and issubclass(one, Config)]
        known = f"table, by `type`: {', '.join(f'`{t}`' for t in tags)}" if len(tags) > 1 else None
        return known or " or ".join(map(_words, some))
    if origin is list:
        return f"list of: {_words(arguments[0])}"
    if origin is dict:
        return f"table of names, to each: {_words(arguments[1])}"
    if origin is tuple:
        return f"list of {len(arguments)}, each: {_words(arguments[0])}"
    return _PLAIN.get(annotation, "table")


def _bounds(metadata: list[Any]) -> str:
    """`≥ 0, < 1`, or nothing."""
    found = []
    for mark in metadata:
        match mark:
            case annotated_types.Ge(bound) | annotated_types.Gt(bound) | annotated_types.Le(bound):
                found.append(f"{_SIGNS[type(mark)]} {bound}")
            case annotated_types.Lt(bound):
                found.append(f"< {bound}")
            case annotated_types.MinLen(number):
                found.append(f"at least {number}")
            case FieldInfo():
                found.append(_bounds(mark.metadata))
            case object(pattern=str(pattern)):
                found.append(f"matches `{pattern}`")
    return ", ".join(part for part in found if part)


def _default(field: FieldInfo) -> str:
    if field.default is PydanticUndefined:
        return "required"
    if field.default is None:
        return "none"
    plain = _plain(field.default)
    return "its own defaults" if isinstance(field.default, Config) and not plain else toml_value(plain)


def _plain(value: Any) -> Any:
    """A default as JSON-able values; of a table, only what it sets itself."""
    match value:
        case Config():
            tag = tag_of(type(value))
            shown = {name: _plain(getattr(value, name)) for name in sorted(value.model_fields_set - {"type"})}
            return {"type": tag, **shown} if tag else shown
        case list() | tuple():
            return [_plain(item) for item in value]
        case _:
            return value


def one_line(text: str | None) -> str:
    """A docstring without its line breaks."""
    return " ".join(inspect.cleandoc(text or "").split())


@dataclass(frozen=True, slots=True)
class Setting:
    """A field at one place of a configuration."""

    path: str
    """As `--set` takes it, with NAME and [] where a name or a number stands."""
    tag: str
    """`type` of the table for which it is legal; empty: always."""
    field: Field


def settings() -> list[Setting]:
    """Every setting at every place."""
    return [
        Setting(f"{place}.{field.name}".removeprefix("."), section.tag, field)
        for section in sections()
        for place in section.places
        for field in section.fields
    ]
