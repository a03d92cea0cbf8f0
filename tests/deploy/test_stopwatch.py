"""Seconds by phase, until they are taken."""

import pytest

from deploy.stopwatch import Stopwatch


def test_what_others_measured_adds_up():
    watch = Stopwatch()
    watch.add({"fetch": 1.0, "load": 0.5})
    watch.add({"fetch": 0.25})
    assert watch.take() == {"fetch": 1.25, "load": 0.5}


def test_counting_starts_anew_once_taken():
    watch = Stopwatch()
    watch.add({"fetch": 1.0})
    taken = watch.take()
    watch.add({"load": 2.0})
    assert taken == {"fetch": 1.0}
    assert watch.take() == {"load": 2.0}
    assert watch.take() == {}


def test_a_phase_is_timed_each_time_it_runs(monkeypatch):
    ticks = iter([10.0, 13.0, 20.0, 21.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    watch = Stopwatch()
    for _ in range(2):
        with watch.phase("update"):
            pass
    assert watch.take() == {"update": 4.0}


def test_a_phase_that_fails_counts_too(monkeypatch):
    ticks = iter([1.0, 3.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    watch = Stopwatch()
    with pytest.raises(KeyError), watch.phase("update"):
        raise KeyError
    assert watch.take() == {"update": 2.0}


def test_phases_may_lie_inside_each_other(monkeypatch):
    ticks = iter([0.0, 1.0, 3.0, 6.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    watch = Stopwatch()
    with watch.phase("outer"), watch.phase("inner"):
        pass
    assert watch.take() == {"inner": 2.0, "outer": 6.0}
