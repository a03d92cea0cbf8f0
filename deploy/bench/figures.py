"""What a benchmark says: figures with units, each beside the limit that it is measured against."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number."""

    name: str
    """What was measured, as `engine.smollm2-135m.ragged.speedup`: benchmark, case, quantity."""
    value: float
    unit: str
    """`tokens/s`, `s`, `x` (a ratio), `share`, …"""
    share: float | None = None
    """Of the limit below, 0 … 1; None where no limit applies."""
    limit: str | None = None
    """Which limit `share` is of, as `decode roofline`."""
    must: float | None = None
    """Least `value` (or largest, see `lower_is_better`) that the project promises on two cores."""
    lower_is_better: bool = False
    note: str = ""

    @property
    def is_met(self) -> bool | None:
        """Whether the promise is kept; None where there is none."""
        if self.must is None:
            return None
        return self.value <= self.must if self.lower_is_better else self.value >= self.must


def as_json(figures: Sequence[Figure], machine: dict[str, Any], errors: Mapping[str, str]) -> str:
    """Figures, the machine they were measured on, and the words of benchmarks that failed, as one JSON document."""
    rows = [asdict(figure) | {"is_met": figure.is_met} for figure in figures]
    return json.dumps({"machine": machine, "figures": rows, "errors": dict(errors)}, indent=2)


def show(figures: Sequence[Figure], console: Console) -> None:
    """As a table."""
    table = Table("figure", "value", "unit", "share of limit", "must", "note", box=None, pad_edge=False)
    for figure in figures:
        share = "" if figure.share is None else f"{figure.share:.0%} of {figure.limit}"
        sign = "≤" if figure.lower_is_better else "≥"
        colour = {None: "", True: "green", False: "red"}[figure.is_met]
        must = "" if figure.must is None else f"[{colour}]{sign} {figure.must:g}[/]"
        table.add_row(figure.name, f"{figure.value:,.4g}", figure.unit, share, must, figure.note)
    console.print(table)
