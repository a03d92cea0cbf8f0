"""`compare.html`: one self-contained page of some runs: tables, overlaid curves, the same prompts side by side.

No scripts, no links, no clock: the same files give the same bytes. Texts of models are escaped.
"""

import os
from pathlib import Path

from deploy.compare.compare import Comparison
from deploy.compare.curves import Overlay, colour_of, overlays
from deploy.compare.view import duel_sentence
from deploy.report.report import page_environment
from deploy.report.words import alarm_sentence

NUM_OPEN_TEXTS = 8
"""Prompts that are shown before one has to unfold."""


def write_page(comparison: Comparison, target: Path) -> None:
    """Write the page, whole or not at all."""
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        temporary.write_text(render(comparison), encoding="utf-8")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def render(comparison: Comparison) -> str:
    """The page."""
    by_update = overlays(comparison.runs, comparison.names, by_trajectories=False)
    by_trajectories = overlays(comparison.runs, comparison.names, by_trajectories=True)
    named: list[tuple[str, list[Overlay]]] = [("By update", by_update), ("By trajectories", by_trajectories)]
    alarms = [
        f"{name}: {alarm}"
        for name, run in zip(comparison.names, comparison.runs, strict=True)
        if (alarm := alarm_sentence(run.summary))
    ]
    return (
        page_environment()
        .get_template("compare.html")
        .render(
            c=comparison,
            colours=[colour_of(i) for i in range(len(comparison.names))],
            duels=[duel_sentence(duel) for duel in comparison.duels],
            alarms=alarms,
            groups=[(title, group) for title, group in named if any(one.svg for one in group)],
            undrawn=[one.title for one in by_update if one.svg is None],
            num_open=NUM_OPEN_TEXTS,
        )
    )
