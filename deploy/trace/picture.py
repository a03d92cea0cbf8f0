"""A trace as a picture: what Perfetto shows, for a page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from common.errors import DataError
from deploy.trace.trace_file import FIRST_ROWS, read_trace

COLOURS: Mapping[str, str] = {
    "generate": "#4c78a8",
    "score": "#f58518",
    "reference": "#ffbf79",
    "update": "#54a24b",
    "publish": "#b279a2",
    "fetch": "#e45756",
    "load": "#ff9da6",
    "pack": "#9ecae9",
    "checkpoint": "#9d755d",
    "collect": "#d5d5d5",
    "start": "#eeca3b",
}
"""By name of a span; others are grey."""
OTHER = "#bab0ac"
WIDTH_IN = 12.0
ROW_IN = 0.34
US = 1e6


def draw_traces(traces: Sequence[tuple[str, Path]], target: Path, *, start_s: float, seconds: float) -> None:
    """One panel per trace, all with the same length of time.

    Args:
        traces: title and file of each.
        target: PNG.
        start_s: where in the training the panels begin: seconds after the first update of each began.
        seconds: their length.

    Raises:
        DataError: a trace cannot be read, or has no update.
    """
    drawn = [(title, _spans(path)) for title, path in traces]
    heights = [len(rows) for _, rows in drawn]
    figure = Figure(figsize=(WIDTH_IN, ROW_IN * sum(heights) + 0.9 * len(drawn)), layout="constrained")
    panels = figure.subplots(len(drawn), 1, squeeze=False, gridspec_kw={"height_ratios": heights})[:, 0]
    for axes, (title, rows) in zip(panels, drawn, strict=True):
        _draw(axes, title, rows, start_s=start_s, seconds=seconds)
    panels[-1].set_xlabel("seconds")
    seen = {span["name"] for _, rows in drawn for spans in rows.values() for span in spans}
    handles = [Patch(color=colour, label=name) for name, colour in COLOURS.items() if name in seen]
    if seen - set(COLOURS):
        handles.append(Patch(color=OTHER, label="other"))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize=8)
    target.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(target, dpi=110)


def _spans(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Spans by name of their row, in the order of the rows."""
    events = read_trace(path)
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    if not any(event["ph"] == "X" and event["name"] == "update" for event in events):
        raise DataError(f"{path} has no update; trace a run that trains")
    order = sorted(names.values(), key=lambda row: (row not in FIRST_ROWS, row))
    rows: dict[str, list[dict[str, Any]]] = {row: [] for row in order}
    for event in events:
        if event["ph"] == "X":
            rows[names[event["tid"]]].append(event)
    return rows


def _draw(
    axes: Axes, title: str, rows: Mapping[str, Sequence[Mapping[str, Any]]], *, start_s: float, seconds: float
) -> None:
    begin = min(span["ts"] for spans in rows.values() for span in spans if span["name"] == "update") / US + start_s
    for number, spans in enumerate(rows.values()):
        bars = [(span["ts"] / US - begin, span["dur"] / US) for span in spans]
        colours = [COLOURS.get(span["name"], OTHER) for span in spans]
        axes.broken_barh(bars, (number - 0.4, 0.8), facecolors=colours, linewidth=0)
    axes.set_xlim(0, seconds)
    axes.set_ylim(len(rows) - 0.5, -0.5)
    axes.set_yticks(range(len(rows)), list(rows), fontsize=8)
    axes.set_title(title, loc="left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
