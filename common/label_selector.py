"""Conditions on the labels of a node, in Ray's words: `a`, `!a`, `in(a, b)`, `!in(a, b)`. Pure; imports nothing of Ray.

Checked when the configuration is read, because Ray itself says only when it places a process what it cannot read.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator

NODE_ID = "ray.io/node-id"
"""Label that Ray gives every node: its id in hexadecimal."""

_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?"
_KEY = re.compile(rf"(?:{_NAME}(?:\.{_NAME})*/)?{_NAME}")
_ONE = re.compile(rf"(!?)({_NAME})")
_ANY = re.compile(rf"(!?)in\(({_NAME}(?:, ?{_NAME})*)\)")

Labels = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Condition:
    """What the value of one label must be, or must not be."""

    values: tuple[str, ...]
    is_negated: bool

    @classmethod
    def read(cls, text: str) -> "Condition":
        """Raise ValueError for what Ray would not understand."""
        match = _ANY.fullmatch(text) or _ONE.fullmatch(text)
        if match is None:
            raise ValueError(
                f"label selector {text!r} is none of the four legal forms: 'spot', '!spot', 'in(spot, on-demand)', "
                "'!in(spot, on-demand)'; values are letters, digits, '-', '_' and '.', at most 63, first and last a "
                "letter or digit"
            )
        return cls(tuple(value.strip() for value in match[2].split(",")), match[1] == "!")

    def holds(self, value: str | None) -> bool:
        """Whether a node is right: one without the label (None) has none of the values."""
        return (value in self.values) != self.is_negated

    def __str__(self) -> str:
        sign = "!" if self.is_negated else ""
        return f"{sign}{self.values[0]}" if len(self.values) == 1 else f"{sign}in({','.join(self.values)})"


def check_selector(selector: dict[str, str]) -> dict[str, str]:
    """Raise ValueError for a key or a condition that Ray would not understand."""
    for key, text in selector.items():
        if not _KEY.fullmatch(key):
            raise ValueError(
                f"{key!r} cannot be the name of a label: it is letters, digits, '-', '_' and '.', at most 63, first "
                "and last a letter or digit, and may begin with a domain, as in 'example.com/disk'"
            )
        Condition.read(text)
    return selector


LabelSelector = Annotated[dict[str, str], AfterValidator(check_selector)]


def unmet(selector: Labels, labels: Labels) -> list[str]:
    """The names of the labels for which a node is wrong; empty if processes with this selector may be there."""
    return [key for key, text in selector.items() if not Condition.read(text).holds(labels.get(key))]


def avoiding(selector: Labels, node_id: str) -> dict[str, str] | None:
    """The selector that leaves out one more node; None where that leaves no node at all.

    A label has one condition only, so a selector that names nodes itself is narrowed.
    """
    if NODE_ID not in selector:
        return {**selector, NODE_ID: f"!{node_id}"}
    own = Condition.read(selector[NODE_ID])
    if own.is_negated:
        return {**selector, NODE_ID: str(Condition((*dict.fromkeys([*own.values, node_id]),), is_negated=True))}
    left = tuple(value for value in own.values if value != node_id)
    return {**selector, NODE_ID: str(Condition(left, is_negated=False))} if left else None
