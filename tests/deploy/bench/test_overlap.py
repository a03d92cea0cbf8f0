"""The benchmarks of generation ahead of learning do what they say; how fast is for them to tell."""

import pytest

from deploy.bench import overlap, staleness_curve
from deploy.bench.options import Options
from deploy.bench.roofline import Roofline
from deploy.bench.stand_ins import WaitingLearner


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(overlap, "UPDATE_S", 0.01)
    monkeypatch.setattr(overlap, "UPDATES", 4)
    monkeypatch.setattr(staleness_curve, "UPDATES", 3)


def test_both_ways_do_the_same_updates_of_the_same_size(quick, monkeypatch):
    trained = []
    update = WaitingLearner.update

    def watched(learner, settings):
        report = update(learner, settings)
        trained.append(sorted(draw for draw, _ in report.trained))
        return report

    monkeypatch.setattr(WaitingLearner, "update", watched)
    for staleness in (0, 1):
        trained.clear()
        assert overlap.seconds_per_step(staleness, sigma=0.5) > 0
        assert [len(draws) for draws in trained] == [64] * 4
        assert sorted(draw for draws in trained for draw in draws) == list(range(256))


def test_the_promise_is_the_ratio_of_both(quick):
    figures = overlap.measure(Options(rounds=1), Roofline(1.0, 1.0, 1))
    by_name = {figure.name: figure for figure in figures}
    turns, ahead = (by_name[f"overlap.even.staleness_{staleness}"].value for staleness in (0, 1))
    assert by_name["overlap.even.speedup"].value == pytest.approx(turns / ahead)
    assert by_name["overlap.even.speedup"].must == 1.8


def test_runs_take_turns_in_both_orders_and_those_of_a_round_meet_the_same_times(monkeypatch):
    ran = []

    def seconds_per_step(staleness, *, sigma, seed):
        ran.append((sigma > 0, seed, staleness))
        return 1.0

    monkeypatch.setattr(overlap, "seconds_per_step", seconds_per_step)
    overlap.measure(Options(rounds=5), Roofline(1.0, 1.0, 1))
    forth, back = [0, 1, 2], [2, 1, 0]
    assert ran == [
        *((False, seed, staleness) for seed, order in enumerate([[0, 1], [1, 0], [0, 1]]) for staleness in order),
        *((True, seed, staleness) for seed, order in enumerate([forth, back, forth]) for staleness in order),
    ]


def test_a_learning_curve_has_the_score_of_each_update_and_a_table_of_differences(quick, tmp_path):
    found = {staleness: [staleness_curve.curve(staleness, seed) for seed in range(2)] for staleness in (0, 1)}
    assert {len(run) for runs in found.values() for run in runs} == {3}
    assert found[0][0][0] == found[1][0][0], "the first update is of the same samples"
    assert found[0][0] != found[1][0]
    assert found[0][0] == staleness_curve.curve(0, 0), "a curve is the same each time"
    assert staleness_curve.updates_until(0.5, [0.1, 0.3, 0.7, 0.2, 0.9]) == pytest.approx(2.5)
    assert "+0.00 ± 0.00" in staleness_curve.summary(found).splitlines()[1]
    staleness_curve.draw(found, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").stat().st_size > 10_000
