"""Which settings are in force at which update, whatever was asked for, undone and asked for again."""

from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DataError
from common.run_settings import RunSettings
from deploy.ppo.settings_journal import Change, Journal, Rollback, read_journal
from deploy.run_folder.files import write_json

START = RunSettings(temperature=1.0, learning_rate=1e-3, kl_target=None, kl_coef=0.1)
NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def change(at_step, from_draw=0, who="operator", **values):
    return Change(at_step=at_step, from_draw=from_draw, settings=replace(START, **values), who=who, reason="",
                  time=NOW, lineage=0)  # fmt: skip


def rollback(to_step, from_step=9):
    return Rollback(to_step=to_step, from_step=from_step, next_draw_index=99, reason="kl", time=NOW, lineage=0)


def journal(*changes):
    made = Journal(start=START)
    for each in changes:
        made = made.add(each)
    return made


@given(st.lists(st.tuples(st.integers(0, 8), st.integers(0, 99)), max_size=6).map(sorted))
def test_the_last_change_that_has_come_in_force_rules(asked):
    """Changes in the order of their updates, as in a run that nothing disturbs."""
    made = journal(*(change(step, temperature=1 + value) for step, value in asked))
    for step in range(10):
        before = [1.0] + [1.0 + value for at_step, value in asked if at_step <= step]
        assert made.in_force(step).temperature == made.in_force(step, 0).temperature == before[-1]


def test_an_order_after_going_back_adds_to_what_was_wanted_last_and_replaces_what_was_to_come():
    made = journal(change(2, temperature=0.5), change(5, temperature=0.5, learning_rate=1e-4))
    redone = made.add(change(3, temperature=0.7, learning_rate=1e-4))
    assert [redone.in_force(step).temperature for step in (1, 2, 3, 5)] == [1.0, 0.5, 0.7, 0.7]
    assert redone.in_force(5).learning_rate == 1e-4
    assert [c.at_step for c in redone.dead] == [5]


def test_settings_of_now_are_kept_over_a_rollback_and_later_changes_are_dead():
    made = journal(change(2, temperature=0.5), change(4, temperature=0.6), change(6, temperature=0.7))
    back = made.roll_back_to(rollback(4))
    assert [back.in_force(step).temperature for step in (1, 2, 3, 4, 5, 9)] == [1.0, 0.5, 0.5, 0.7, 0.7, 0.7]
    assert [c.settings.temperature for c in back.dead] == [0.7]
    assert [r.to_step for r in back.rollbacks] == [4]
    again = back.add(change(5, temperature=0.8)).roll_back_to(rollback(2))
    assert [again.in_force(step).temperature for step in (1, 2, 9)] == [1.0, 0.8, 0.8]
    assert [r.to_step for r in again.rollbacks] == [4, 2]


def test_a_rollback_that_undoes_no_change_is_only_recorded():
    made = journal(change(2, temperature=0.5))
    back = made.roll_back_to(rollback(2))
    assert (back.changes, back.dead, len(back.rollbacks)) == (made.changes, (), 1)


def test_attempts_of_an_update_without_a_finite_step_have_settings_of_their_own():
    """Asked for while the update after step 3 was tried with the batch that begins at draw 96."""
    made = journal(change(4, from_draw=97, learning_rate=1e-5))
    assert made.reach(3, 96).in_force(3, 96) == START
    tried_again = made.reach(3, 128)
    assert tried_again.in_force(3, 128).learning_rate == 1e-5
    assert tried_again.in_force(3).learning_rate == 1e-5, "the attempt that made the update"
    assert tried_again.in_force(3, 96) == START, "the first attempt, done again after a restart"
    assert made.reach(4, 128).in_force(4, 128).learning_rate == 1e-5
    assert made.reach(4, 128).in_force(3).learning_rate == 1e-3, "without another attempt it counts one update later"


def test_differences_name_each_setting_and_leave_out_what_has_not_come_in_force():
    made = journal(change(2, temperature=0.5, kl_coef=0.2), change(5, who="guard", temperature=0.5, learning_rate=1e-4,
                   kl_coef=0.2))  # fmt: skip
    told = [(d.at_step, d.name, d.before, d.after, d.who) for d in made.differences()]
    assert told == [
        (2, "temperature", 1.0, 0.5, "operator"),
        (2, "kl_coef", 0.1, 0.2, "operator"),
        (5, "learning_rate", 1e-3, 1e-4, "guard"),
    ]
    assert [d.at_step for d in made.differences(before_step=5)] == [2, 2]


def test_a_journal_comes_back_from_disk_as_it_was(tmp_path):
    made = journal(change(2, temperature=0.1 + 0.2), change(3, who="guard", temperature=1 / 3)).roll_back_to(
        rollback(2)
    )
    write_json(tmp_path / "steering.json", made.model_dump(mode="json"))
    assert read_journal(tmp_path) == made
    assert read_journal(tmp_path / "nowhere") is None


def test_a_journal_that_makes_no_sense_is_an_error_that_names_the_line(tmp_path):
    write_json(tmp_path / "steering.json", {"start": {"temperature": "hot"}})
    with pytest.raises(DataError, match=r"steering\.json:3: start"):
        read_journal(tmp_path)
