"""Long histories in few rows."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.run_folder.history import RunHistory
from deploy.run_folder.thinning import every


def kept(first, newest, most):
    k, whole_from = every(first, newest, most=most)
    return k, [number for number in range(first, newest + 1) if number >= whole_from or number % k == 0]


@given(st.integers(0, 50), st.integers(0, 3000), st.integers(2, 60))
def test_a_history_of_any_length_fits_and_its_newest_half_is_whole(first, length, most):
    newest, half = first + length, most // 2
    k, numbers = kept(first, newest, most)
    assert len(numbers) <= most
    assert numbers[-half:] == list(range(first, newest + 1))[-half:]
    if length + 1 <= most:
        assert len(numbers) == length + 1, "nothing is left out where all fit"
    if k > 1:
        older = [number for number in range(first, newest - half + 1) if number % (k // 2) == 0]
        assert len(older) + half > most, "no thinner than needed"


def write(folder, num_updates, num_events):
    row = {"identity": "0.1", "metrics": {"kl": 1.0}, "seconds": {"total": 1.0}}
    with (folder / "metrics.jsonl").open("w") as file:
        for step in range(1, num_updates + 1):
            file.write(json.dumps({"step": step} | row) + "\n")
    event = {"time": "2026-01-02T03:04:05+00:00", "event": "scale", "slot": "", "text": "to 3"}
    (folder / "events.jsonl").write_text((json.dumps(event) + "\n") * num_events)


@pytest.mark.parametrize(("after", "first"), [(0, 16), (43, 48)])
def test_updates_of_a_long_run_reach_back_to_its_beginning(tmp_path, after, first):
    write(tmp_path, 100, 0)
    steps = [row.step for row in RunHistory(tmp_path).updates(after=after, limit=20, thinned=True).updates]
    assert steps[0] == first
    assert steps[-10:] == list(range(91, 101))
    assert all(step % 2 == 0 for step in steps[:-10])
    assert len(steps) <= 20


def test_of_a_lineage_that_was_gone_back_on_nothing_is_shown_thinned_either(tmp_path):
    write(tmp_path, 100, 0)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        for step in range(61, 81):
            row = {"step": step, "identity": "1.1", "metrics": {}, "seconds": {}}
            file.write(json.dumps(row) + "\n")
    rows = RunHistory(tmp_path).updates(limit=20, thinned=True).updates
    assert [row.step for row in rows] == sorted({row.step for row in rows})
    assert rows[-1].step == 80
    assert {row.identity for row in rows if row.step > 60} == {"1.1"}
    assert rows[0].step <= 16


def test_events_of_a_long_run_reach_back_to_its_beginning(tmp_path):
    write(tmp_path, 0, 1000)
    numbers = [row.number for row in RunHistory(tmp_path).events(limit=20, thinned=True).events]
    assert numbers[0] == 0
    assert numbers[-10:] == list(range(990, 1000))
    assert len(numbers) <= 20
    assert len(RunHistory(tmp_path).events(limit=20, thinned=False).events) == 20
