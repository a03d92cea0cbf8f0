"""The picture of `curves`: reward against trajectories and against seconds, a thin line for each seed, a thick mean.

Uses matplotlib's objects, never pyplot: nothing global is opened or changed.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt
from matplotlib.figure import Figure

COLOURS = ("#1b6ca8", "#6fb1e0", "#d1495b", "#66785f")
WIDTH_INCHES, HEIGHT_INCHES, DPI = 9.0, 3.4, 110
SMOOTH_STEPS = 3
"""Steps that each point of a line is the mean of."""

Series = npt.NDArray[np.float64]


class Point(Protocol):
    """What is read of a step; see `curves.Point`."""

    @property
    def learner(self) -> str:
        """Whose."""

    @property
    def seed(self) -> int:
        """Of the run."""

    @property
    def trajectories(self) -> int:
        """So far."""

    @property
    def seconds(self) -> float:
        """So far."""

    @property
    def score(self) -> float:
        """Of this step."""


def plot(points: Sequence[Point], path: Path) -> None:
    """Write the picture."""
    figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    names = list(dict.fromkeys(point.learner for point in points))
    for name, colour in zip(names, COLOURS, strict=False):
        runs = _runs([point for point in points if point.learner == name])
        for axes, column in ((left, 0), (right, 1)):
            for run in runs:
                axes.plot(run[:, column], smooth(run[:, 2]), color=colour, alpha=0.3, linewidth=0.8)
            mean = np.mean(runs, axis=0)
            axes.plot(mean[:, column], smooth(mean[:, 2]), color=colour, linewidth=2.0, label=name)
    left.set(xlabel="trajectories", ylabel="mean reward")
    right.set(xlabel="seconds of its own steps")
    left.legend(frameon=False)
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=DPI)


def _runs(points: Sequence[Point]) -> list[Series]:
    """[steps, 3] of each seed: trajectories, seconds, reward."""
    seeds = dict.fromkeys(point.seed for point in points)
    return [np.array([(p.trajectories, p.seconds, p.score) for p in points if p.seed == seed]) for seed in seeds]


def smooth(values: Series) -> Series:
    """[n] running mean over the last steps, fewer at the beginning."""
    sums = np.cumsum(np.concatenate([[0.0], values]))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(0, ends - SMOOTH_STEPS)
    result: Series = (sums[ends] - sums[starts]) / (ends - starts)
    return result
