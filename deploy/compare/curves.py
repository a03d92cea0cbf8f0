"""Overlaid curves of some runs: which there are, and from where their points come. One colour per run."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from deploy.report.figures import MAX_POINTS, Line, draw_lines
from deploy.run_folder.contents import RunFiles, UpdateLine, finite
from deploy.run_folder.evaluation_file import EvaluationLine

NUM_COLOURS = 5
"""Of the page; further runs take them again, dashed."""


@dataclass(frozen=True, slots=True)
class Overlay:
    """One curve, by update or by trajectories."""

    title: str
    shows: str
    svg: Markup | None
    """None where no run recorded it."""
    missing: tuple[str, ...]
    """Runs that did not record it."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """A number that is drawn for every run."""

    slug: str
    title: str
    shows: str
    key: str
    is_heldout: bool
    """Of the evaluations while PPO learnt; else of the updates."""


WANTED = (
    Wanted(
        "score", "Score of the samples", "Mean score of each update's own samples, as training sees it.",
        "score_mean", is_heldout=False,
    ),
    Wanted(
        "kl", "KL per response (nats)", "Distance from the policy before PPO: what the score is paid with.",
        "kl_seq_sum", is_heldout=False,
    ),
    Wanted(
        "reward", "Reward on held-out prompts", "Mean score of the answers to held-out prompts.",
        "reward", is_heldout=True,
    ),
    Wanted(
        "judge", "Judge on held-out prompts",
        "Mean probability of “positive” by the judge, which training never sees.",
        "judge_p_positive", is_heldout=True,
    ),
    Wanted(
        "win", "Win rate over the policy before PPO",
        "Share of held-out prompts on which the judge prefers the new answer.",
        "win_rate", is_heldout=True,
    ),
    Wanted(
        "gap", "Reward ahead of judge (standard deviations)",
        "How far the policy pleases the reward alone; a rise is over-optimisation.",
        "gap", is_heldout=True,
    ),
)  # fmt: skip


def overlays(runs: Sequence[RunFiles], names: Sequence[str], *, by_trajectories: bool) -> list[Overlay]:
    """All curves, along updates or along the trajectories that were trained on."""
    place: Callable[[RunFiles], Callable[[int], float]] = _trajectories if by_trajectories else _updates
    axis = "trajectories" if by_trajectories else "update"
    return [_overlay(wanted, runs, names, [place(run) for run in runs], axis) for wanted in WANTED]


def colour_of(index: int) -> tuple[int, bool]:
    """Colour from 1, and whether the line is dashed, of the run at a position."""
    return index % NUM_COLOURS + 1, index >= NUM_COLOURS


def _overlay(
    wanted: Wanted, runs: Sequence[RunFiles], names: Sequence[str], places: Sequence[Callable[[int], float]], axis: str
) -> Overlay:
    lines, missing = [], []
    for i, (run, name, at) in enumerate(zip(runs, names, places, strict=True)):
        source: Sequence[UpdateLine | EvaluationLine] = run.evaluations if wanted.is_heldout else run.updates
        points = [(at(one.step), value) for one in source if (value := _value(one, wanted.key)) is not None]
        if not points:
            missing.append(name)
            continue
        stride = -(-len(points) // MAX_POINTS)
        x, y = np.array(points[::-1][::stride][::-1], dtype=np.float64).T
        lines.append(Line(x, y, *colour_of(i)))
    slug = f"{wanted.slug}-{axis}"
    return Overlay(
        wanted.title,
        wanted.shows,
        Markup(draw_lines(lines, slug=slug, title=f"{wanted.title} by {axis}", axis=axis)) if lines else None,
        tuple(missing),
    )


def _value(line: UpdateLine | EvaluationLine, key: str) -> float | None:
    return finite((line.numbers if isinstance(line, EvaluationLine) else line.metrics).get(key))


def _updates(run: RunFiles) -> Callable[[int], float]:
    return float


def _trajectories(run: RunFiles) -> Callable[[int], float]:
    """Trajectories trained on up to an update: the ledger's number, for a rewind may have undone some."""
    known = {update.step: update.ledger.get("trained") for update in run.updates}
    counts = {step: float(count) for step, count in known.items() if isinstance(count, int)}
    return lambda step: 0.0 if step == 0 else counts.get(step, float("nan"))
