"""Curves of learning: the table and the figures say what was measured, and the picture is one."""

import csv

import numpy as np
import pytest

from deploy.bench.peers.comparison import CLASSIC, EXPERIMENTAL, OURS, OURS_OWN_VALUE
from deploy.bench.peers.curve_plot import plot, smooth
from deploy.bench.peers.curves import Point, figures_of, write_table


def points(**levels):
    """Two seeds, ten steps; the reward rises by the given slope."""
    return [
        Point(name, seed, step, 32 * step, 0.5 * step, slope * step + 0.01 * seed, 0.1)
        for seed in (1, 2)
        for step in range(1, 11)
        for name, slope in levels.items()
    ]


def test_ours_is_held_against_the_others_with_the_same_networks_by_the_mean_over_trajectories():
    levels = {OURS: 0.05, OURS_OWN_VALUE: 0.055, CLASSIC: 0.05, EXPERIMENTAL: 0.06}
    figures = {figure.name: figure for figure in figures_of(points(**levels))}
    assert figures["curves.ours.score_mean"].value == pytest.approx(0.05 * 5.5 + 0.015)
    assert figures["curves.ours.score_last"].value == pytest.approx(0.5 + 0.015)
    assert figures["curves.ours.seconds"].value == 5.0
    alike = figures[f"curves.ours.over-{CLASSIC}"]
    assert (alike.value, alike.is_met) == (1.0, True)
    own = figures[f"curves.ours-own-value.over-{EXPERIMENTAL}"]
    assert own.value == pytest.approx(0.3175 / 0.345)
    assert own.is_met is False
    other = figures[f"curves.ours.over-{EXPERIMENTAL}"]
    assert (other.value, other.must) == (pytest.approx(0.29 / 0.345), None)


def test_the_table_has_a_row_for_each_step(tmp_path):
    write_table(points(ours=0.05), tmp_path / "table.csv")
    with (tmp_path / "table.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 20
    values = ("ours", "1", "1", "32", "0.5", "0.06", "0.1")
    names = ("learner", "seed", "step", "trajectories", "seconds", "score", "kl")
    assert rows[0] == dict(zip(names, values, strict=True))


def test_the_picture_is_written(tmp_path):
    plot(points(ours=0.05, other=0.04), tmp_path / "peers.png")
    assert (tmp_path / "peers.png").read_bytes().startswith(b"\x89PNG")


def test_smoothing_looks_back_and_never_ahead():
    assert smooth(np.array([3.0, 0.0, 6.0, 0.0])).tolist() == [3.0, 1.5, 3.0, 2.0]
