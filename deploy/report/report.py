"""`report.html`: one self-contained page of what a run did, from the files of its folder and nothing else.

    run folder ─▶ run_files ─▶ report_words (numbers in words) ─┐
                      └──────▶ report_figures (curves)  ────────┴─▶ templates/report.html

No scripts, no links, no clock: the same files give the same bytes. Called at the end of `minichatgpt run`, and by hand.
"""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from deploy.report import words
from deploy.report.absences import absences, ppo_broken_off, why_absent
from deploy.report.changes import Mark, change_rows, marks
from deploy.report.curves import EVALUATIONS, GROUPS, Curve, Layer
from deploy.report.figures import MAX_POINTS, draw, has_values, thinned
from deploy.report.guards import guard_rows, with_guards
from deploy.report.preferences import length_warning, preference_measures, scores_shown
from deploy.run_folder.contents import ExtremeLine, RunFiles, UpdateLine, final_ledger, finite, read_run, stage_seconds
from deploy.run_folder.evaluation_file import EvaluationLine

TEMPLATES = Path(__file__).parents[1] / "templates"
NUM_OPEN_TEXTS = 8
"""Held-out texts that are shown before one has to unfold."""
NUM_EXTREMES = 2
"""Best and as many worst texts shown of an update."""


@dataclass(frozen=True, slots=True)
class Panel:
    """A curve as the page shows it; `svg` is None where the run recorded nothing of it."""

    title: str
    shows: str
    worry: str
    legend: tuple[Layer, ...]
    missing: tuple[str, ...]
    """Names of metrics that are not recorded."""
    svg: Markup | None


@dataclass(frozen=True, slots=True)
class PanelGroup:
    """Panels that are read together."""

    title: str
    panels: tuple[Panel, ...]


@dataclass(frozen=True, slots=True)
class StageRow:
    """Time of one stage, its share of the longest, and its own numbers."""

    stage: str
    time: str
    width_percent: float
    numbers: dict[str, str]


def write_report(run_folder: Path) -> Path:
    """Write `report.html` into the run folder, whole or not at all, and return its path.

    What the run did not record is said on the page, with the likely reason.

    Raises:
        DataError: there is no such folder, or one of its files is malformed; names file and line.
    """
    page = render(read_run(run_folder))
    target = run_folder / "report.html"
    temporary = run_folder / f".report.html.{os.getpid()}.tmp"
    try:
        temporary.write_text(page, encoding="utf-8")
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)
    return target


def render(run: RunFiles) -> str:
    """The page of a run."""
    why = why_absent(run)
    rows = [*words.measures(run.summary), *preference_measures(run.summary)]
    guarded = guard_rows(run)
    shown = with_guards(marks(run.changes), guarded)
    groups = [*evaluation_group(run.evaluations, shown), *panel_groups(run.updates, shown)]
    return (
        page_environment()
        .get_template("report.html")
        .render(
            run=run,
            sentence=words.result_sentence(run, why),
            alarm=words.alarm_sentence(run.summary),
            rows=[row for row in rows if not row.is_absent],
            row_absences=absences(rows, why),
            why=why,
            marks_of=words.VERDICT_MARKS,
            good_arrows=words.GOOD_ARROWS,
            good_words=words.GOOD_WORDS,
            scores=scores_shown(run.summary),
            length_warning=length_warning(run.summary.rm_preferences if run.summary else None),
            groups=groups,
            changes=change_rows(run.changes),
            guarded=guarded,
            undrawn=[panel for group in groups for panel in group.panels if panel.svg is None],
            num_drawn=len(thinned(run.updates)),
            max_points=MAX_POINTS,
            num_nonfinite=num_nonfinite(run.updates),
            open_texts=run.heldout[:NUM_OPEN_TEXTS],
            folded_texts=run.heldout[NUM_OPEN_TEXTS:],
            extremes=extremes(run.extremes),
            stages=stage_rows(run),
            broken_off=ppo_broken_off(run),
            ledger=final_ledger(run),
        )
    )


def page_environment() -> Environment:
    """The templates, which escape what they are given."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": words.number, "gap": words.gap_between}
    return environment


def panel_groups(updates: Sequence[UpdateLine], changed: Sequence[Mark] = ()) -> list[PanelGroup]:
    """All curves, drawn as far as the updates have them."""
    shown = [_with_rest(update) for update in thinned(updates)]
    return [PanelGroup(group.title, tuple(_panel(curve, shown, changed) for curve in group.curves)) for group in GROUPS]


def evaluation_group(evaluations: Sequence[EvaluationLine], changed: Sequence[Mark] = ()) -> list[PanelGroup]:
    """The curves of the evaluations while PPO learnt; none where there were none."""
    points = thinned([UpdateLine(step=line.step, metrics=line.numbers) for line in evaluations])
    if not points:
        return []
    return [PanelGroup(EVALUATIONS.title, tuple(_panel(curve, points, changed) for curve in EVALUATIONS.curves))]


def _panel(curve: Curve, updates: Sequence[UpdateLine], changed: Sequence[Mark]) -> Panel:
    there = tuple(layer for layer in curve.layers if has_values(layer, updates))
    lost = {key: None for layer in curve.layers if layer not in there for key in layer.keys}
    for layer in there:
        lost = {key: None for key in lost if key not in layer.keys}
    drawable = dataclasses.replace(curve, layers=there)
    return Panel(
        title=curve.title,
        shows=curve.shows,
        worry=curve.worry,
        legend=there if len(curve.layers) > 1 else (),
        missing=tuple(lost),
        svg=Markup(draw(drawable, updates, changed)) if there else None,
    )


def _with_rest(update: UpdateLine) -> UpdateLine:
    """With `update_rest`: the wall seconds of the update that its parts leave over, so that a stack adds up."""
    whole = finite(update.seconds.get("update"))
    if whole is None:
        return update
    parts = sum(finite(update.seconds.get(part)) or 0.0 for part in ("prepare", "train"))
    return update.model_copy(update={"seconds": {**update.seconds, "update_rest": max(0.0, whole - parts)}})


def num_nonfinite(updates: Sequence[UpdateLine]) -> int:
    """Optimizer steps that were not taken, since their loss or gradient was not finite."""
    return round(sum(finite(update.metrics.get("nonfinite_steps")) or 0.0 for update in updates))


def extremes(lines: Sequence[ExtremeLine]) -> list[tuple[int, list[ExtremeLine]]]:
    """Best, then worst texts of the first, the middle and the last update that has any, with its step."""
    steps = sorted({line.step for line in lines})
    chosen = dict.fromkeys(steps[i] for i in (0, len(steps) // 2, -1)) if steps else {}
    texts: list[tuple[int, list[ExtremeLine]]] = []
    for step in chosen:
        best = [line for line in lines if line.step == step and line.kind == "best"]
        worst = [line for line in lines if line.step == step and line.kind == "worst"]
        texts.append((step, best[:NUM_EXTREMES] + worst[:NUM_EXTREMES]))
    return texts


def stage_rows(run: RunFiles) -> list[StageRow]:
    """One row per stage of which anything is known, in order."""
    seconds = stage_seconds(run)
    longest = max((spent for spent in seconds.values() if spent), default=1.0)
    numbers = {stage.stage: words.stage_numbers(stage) for stage in run.stages}
    return [
        StageRow(stage, words.duration(spent), round(100 * (spent or 0.0) / longest, 1), numbers.get(stage, {}))
        for stage, spent in seconds.items()
    ]
