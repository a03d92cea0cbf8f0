"""The curves of the report, each an SVG to be put into a page: what is drawn is told in `deploy.report.curves`.

Ink and colours are CSS variables of the page, so that curves follow its light or dark theme. The same numbers give the
same bytes. Uses matplotlib's objects, never pyplot: nothing global is opened or changed.
"""

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullFormatter

from deploy.report.changes import Mark
from deploy.report.curves import Curve, Layer
from deploy.run_folder.checked_json import Numbers
from deploy.run_folder.contents import UpdateLine

Series = npt.NDArray[np.float64]

WIDTH_INCHES, HEIGHT_INCHES = 4.0, 2.35
MAX_POINTS = 1000
"""More updates than this are thinned, so that the page stays light."""
MAX_MARKED = 60
"""More updates than this are drawn as lines without dots."""
MAX_LABELS = 20
"""More marks than this have no numbers."""
LOG_FLOOR = 1e-9
"""Where a zero is drawn on a logarithmic axis."""

_INK, _FAINT = "#010101", "#020202"
_COLOURS = [f"#0{i}000{i}" for i in range(1, 7)]
_VARIABLES = {_INK: "var(--soft)", _FAINT: "var(--line)"} | {
    colour: f"var(--series-{i})" for i, colour in enumerate(_COLOURS, start=1)
}
_RC = {
    "svg.hashsalt": "minichatgpt",
    "svg.fonttype": "none",
    "font.size": 8.0,
    "axes.edgecolor": _FAINT,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.8,
    "axes.formatter.limits": (-3, 4),
    "axes.formatter.use_mathtext": False,
    "axes.unicode_minus": True,
    "text.color": _INK,
    "xtick.color": _FAINT,
    "ytick.color": _FAINT,
    "xtick.labelcolor": _INK,
    "ytick.labelcolor": _INK,
    "grid.color": _FAINT,
    "grid.linewidth": 0.5,
}


@dataclass(frozen=True, slots=True)
class Line:
    """One run's part of an overlay."""

    x: Series
    """[N]"""
    y: Series
    """[N]"""
    colour: int
    """Which of the page's series colours, from 1."""
    is_dashed: bool = False


def thinned(updates: Sequence[UpdateLine]) -> tuple[UpdateLine, ...]:
    """At most MAX_POINTS updates at even distances, the last one included."""
    stride = -(-len(updates) // MAX_POINTS) if updates else 1
    return tuple(reversed(updates[::-1][::stride]))


def series(updates: Sequence[UpdateLine], key: str) -> Series:
    """[N] values of one metric or, as `seconds.NAME`, of one phase; NaN where absent, null or not finite."""
    return np.array([_finite_or_nan(_numbers(update, key).get(key.removeprefix("seconds."))) for update in updates])


def draw(curve: Curve, updates: Sequence[UpdateLine], marks: Sequence[Mark] = ()) -> str:
    """The curve as an `<svg>` element; what is not finite leaves a gap. Marks are dotted lines, numbered.

    The caller has made sure that at least one layer has a finite value.
    """
    steps = np.array([update.step for update in updates], dtype=np.float64)
    with _figure() as (figure, axes):
        _prepare(axes, curve)
        if curve.is_stacked:
            _stack(axes, curve, steps, updates)
        else:
            for layer in curve.layers:
                _draw_layer(axes, layer, steps, updates, is_log=curve.is_log)
        _limit(axes, curve, steps)
        _mark(axes, marks)
        svg = _svg(figure)
    return _inline(svg, curve.slug, f"{curve.title} by update")


def draw_lines(lines: Sequence[Line], *, slug: str, title: str, axis: str) -> str:
    """Lines of several runs as one `<svg>` element, along the same axis.

    Args:
        lines: at least one, with at least one point each.
        slug: begins the ids of the element.
        title: told to who cannot see it.
        axis: name of the horizontal axis.
    """
    with _figure(width=0.82) as (figure, axes):  # room for the last number of thousands of trajectories
        _prepare_axes(axes, axis)
        for line in lines:
            marker = "o" if len(line.x) <= MAX_MARKED else None
            axes.plot(line.x, line.y, color=_COLOURS[line.colour - 1], linewidth=1.5, marker=marker, markersize=2.2,
                      linestyle=(0, (3, 2)) if line.is_dashed else "-")  # fmt: skip
        svg = _svg(figure)
    return _inline(svg, slug, title)


@contextmanager
def _figure(*, width: float = 0.85) -> Iterator[tuple[Figure, Any]]:
    with mpl.rc_context(_RC):
        figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES))
        yield figure, figure.add_axes((0.135, 0.145, width, 0.80))


def _svg(figure: Figure) -> str:
    file = io.StringIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    figure.savefig(file, format="svg", transparent=True, metadata=nothing)
    return file.getvalue()


def has_values(layer: Layer, updates: Sequence[UpdateLine]) -> bool:
    """Whether anything of the layer can be drawn."""
    return all(bool(np.isfinite(series(updates, key)).any()) for key in layer.keys)


def _numbers(update: UpdateLine, key: str) -> Numbers:
    return update.seconds if key.startswith("seconds.") else update.metrics


def _finite_or_nan(value: float | None) -> float:
    return value if value is not None and np.isfinite(value) else float("nan")


def _prepare_axes(axes: Any, name: str) -> None:
    axes.set_xlabel(name, loc="right", labelpad=1)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.tick_params(which="both", length=0, pad=3)
    axes.grid(axis="y")
    axes.set_axisbelow(True)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True, steps=[1, 2, 5, 10]))
    axes.yaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))


def _prepare(axes: Any, curve: Curve) -> None:
    _prepare_axes(axes, "update")
    if curve.is_log:
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"1e{round(np.log10(value))}")
        axes.yaxis.set_minor_formatter(NullFormatter())
    if curve.rule is not None:
        axes.axhline(curve.rule, color=_INK, linewidth=0.9, linestyle=(0, (4, 3)))


def _draw_layer(axes: Any, layer: Layer, steps: Series, updates: Sequence[UpdateLine], *, is_log: bool) -> None:
    values = [series(updates, key) for key in layer.keys]
    if is_log:
        values = [np.where(one <= 0, LOG_FLOOR, one) for one in values]
    colour = _COLOURS[layer.colour - 1]
    match layer.shape, values:
        case "line", [line]:
            marker = "o" if len(steps) <= MAX_MARKED else None
            axes.plot(steps, line, color=colour, linewidth=1.5, marker=marker, markersize=2.2)
        case "range", [low, high]:
            axes.fill_between(steps, low, high, color=colour, alpha=0.13, linewidth=0)
        case "spread", [middle, spread]:
            axes.fill_between(steps, middle - spread, middle + spread, color=colour, alpha=0.25, linewidth=0)


def _stack(axes: Any, curve: Curve, steps: Series, updates: Sequence[UpdateLine]) -> None:
    """Steps of one update's width on top of each other; a phase that an update does not name took no time."""
    middles = (steps[1:] + steps[:-1]) / 2
    edges = np.concatenate([[steps[0] - 0.5], middles, [steps[-1] + 0.5]])
    floor = np.zeros(len(steps))
    for layer in curve.layers:
        top = floor + np.nan_to_num(series(updates, layer.keys[0]))
        axes.stairs(top, edges, baseline=floor, fill=True, color=_COLOURS[layer.colour - 1], alpha=0.85, linewidth=0)
        floor = top


def _mark(axes: Any, marks: Sequence[Mark]) -> None:
    """Between the last update before it and the first after it."""
    for mark in marks:
        axes.axvline(mark.at_step + 0.5, color=_INK, linewidth=0.9, linestyle=(0, (1, 2)))
        if len(marks) <= MAX_LABELS:
            axes.annotate(mark.label, (mark.at_step + 0.5, 1.0), xycoords=("data", "axes fraction"), ha="center",
                          va="bottom", fontsize=7)  # fmt: skip


def _limit(axes: Any, curve: Curve, steps: Series) -> None:
    room = 0.5 if curve.is_stacked else max(0.5, 0.02 * (steps[-1] - steps[0]))
    axes.set_xlim(steps[0] - room, steps[-1] + room)
    if curve.starts_at_zero:
        axes.set_ylim(bottom=0, top=axes.get_ylim()[1] or 1.0)


def _inline(svg: str, slug: str, title: str) -> str:
    """Without prologue, style sheet and fixed size; ids of its own; colours from the page."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg, flags=re.DOTALL)
    view_box = re.search(r'viewBox="[^"]+"', svg)
    assert view_box is not None, "matplotlib writes a viewBox"
    label = f'role="img" aria-label="{title}"'
    svg = re.sub(r"<svg[^>]*>", f"<svg {view_box.group()} {label}>", svg, count=1)
    svg = re.sub(r'( id="|url\(#|xlink:href="#)', rf"\1{slug}-", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, variable)
    return svg.strip()
