"""Words for dashboards: a query, a panel, a row, a dashboard. `grafana.py` turns them into Grafana's JSON.

Metrics are named through `common.metric_catalogue`, so that a dashboard cannot ask for one that no run has; what a
panel says of its metrics, and when to worry, stands there too.
"""

import re
from dataclasses import dataclass
from typing import Final, Literal

from common.metric_catalogue import CATALOGUE, PREFIX

Kind = Literal["timeseries", "stat", "heatmap", "table", "state-timeline"]
RUN: Final = 'run=~"$run"'
INTERVAL: Final = "$__rate_interval"
ELSE: Final = " or on (run) "
Steps = tuple[tuple[float, str], ...]
"""From this value on, this colour; what is below the first is green."""


@dataclass(frozen=True, slots=True)
class Query:
    """One line, or one bundle of lines, of a panel."""

    expr: str
    """PromQL."""
    legend: str = "{{run}}"
    """With labels in double braces."""


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    """Grafana's name of it."""
    kind: Kind = "timeseries"
    width: int = 8
    """Of 24 columns."""
    steps: Steps = ()
    stacked: bool = False
    note: str = ""
    """Said before what the catalogue says."""
    words: tuple[tuple[int, str, str], ...] = ()
    """Values that are shown as a word in a colour."""


@dataclass(frozen=True, slots=True)
class Row:
    """Panels below one heading."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class Dashboard:
    """One page."""

    uid: str
    title: str
    question: str
    """That it answers."""
    rows: tuple[Row, ...]


def series(name: str, *matchers: str, part: str = "") -> str:
    """A selector of a metric of the catalogue, for the runs that are chosen; `part` is `bucket`, `sum` or `count`."""
    full = CATALOGUE[name].full_name + (f"_{part}" if part else "")
    return f"{full}{{{', '.join((RUN, *matchers))}}}"


def recorded(name: str, *matchers: str) -> str:
    """A selector of a recording rule, whose name begins with `minichatgpt:`."""
    return f"minichatgpt:{name}{{{', '.join((RUN, *matchers))}}}"


def or_zero(expr: str) -> str:
    """0 for a run of which the expression says nothing: what has not happened yet has no series."""
    return f"{expr}{ELSE}0 * {series('updates')}"


def per_second(name: str, by: str, *matchers: str) -> str:
    """Rate of a counter."""
    return f"sum by (run, {by}) (rate({series(name, *matchers)}[{INTERVAL}]))"


def happened(name: str, by: str, *matchers: str) -> str:
    """How often something happened between two points of the graph; 0 where it never did."""
    return or_zero(f"sum by (run, {by}) (increase({series(name, *matchers)}[{INTERVAL}]))")


def quantile(share: float, name: str, by: str, *matchers: str) -> str:
    """Quantile of a histogram."""
    rates = f"sum by (le, run, {by}) (rate({series(name, *matchers, part='bucket')}[{INTERVAL}]))"
    return f"histogram_quantile({share:g}, {rates})"


def mean(name: str, by: str, *matchers: str) -> str:
    """Mean of a histogram."""
    total = f"sum by (run, {by}) (rate({series(name, *matchers, part='sum')}[{INTERVAL}]))"
    return f"{total} / sum by (run, {by}) (rate({series(name, *matchers, part='count')}[{INTERVAL}]))"


def heatmap(title: str, name: str, unit: str, *, width: int = 8) -> Panel:
    """How a histogram's distribution moves."""
    expr = f"sum by (le) (increase({series(name, part='bucket')}[{INTERVAL}]))"
    return Panel(title, (Query(expr, "{{le}}"),), unit, kind="heatmap", width=width)


def gauge(title: str, name: str, unit: str, *, width: int = 8, steps: Steps = ()) -> Panel:
    """One gauge, by run."""
    return Panel(title, (Query(series(name)),), unit, width=width, steps=steps)


def describe(panel: Panel) -> str:
    """The note, then meaning and worry of every metric of the panel, from the catalogue."""
    lines = [panel.note] if panel.note else []
    for name in dict.fromkeys(name for query in panel.queries for name in metrics_of(query.expr)):
        metric = CATALOGUE[name]
        worry = f" Worry: {metric.worry}" if metric.worry else ""
        lines.append(f"{metric.full_name}: {metric.meaning}{worry}")
    return "\n\n".join(lines)


def metrics_of(expr: str) -> list[str]:
    """Names in the catalogue of the metrics that an expression shows; the one that `or_zero` borrows is not shown."""
    names = [full.removeprefix(PREFIX) for full in re.findall(rf"\b{PREFIX}\w+", expr.partition(ELSE)[0])]
    return [name if name in CATALOGUE else re.sub(r"_(bucket|sum|count|total)$", "", name) for name in names]
