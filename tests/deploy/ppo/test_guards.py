"""The guard rails as a machine: what raises and clears an alarm, and what follows from it."""

import math
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.guards.guards import Guards
from deploy.guards.history import replayed
from deploy.ppo.settings_journal import Rollback
from deploy.run_folder.contents import UpdateLine
from deploy.run_folder.evaluation_file import EvaluationLine

WELL = {
    "kl_seq_sum": 4.0,
    "entropy": 2.0,
    "clip_fraction": 0.1,
    "repetition": 0.05,
    "response_tokens_mean": 20.0,
    "score_mean": 0.0,
}
BEYOND = {
    "kl": {"kl_seq_sum": 31.0},
    "entropy": {"entropy": 0.5},
    "clip_fraction": {"clip_fraction": 0.31},
    "repetition": {"repetition": 0.31},
    "length": {"response_tokens_mean": 41.0},
}


@pytest.fixture
def guards(tiny):
    """The machine of `tiny` with changes, and what rollbacks came before."""

    def make(*changes, rolled_back_to=()):
        return Guards(tiny(*changes), rolled_back_to)

    return make


def feed(machine, rows, first=1):
    """Notices and orders by step."""
    seen = []
    for step, row in enumerate(rows, start=first):
        notices = machine.see(step, {**WELL, **row}, None)
        order = machine.decide(step)
        seen.append(
            ([(n.kind, n.alarm.guard, n.alarm.since_step) for n in notices], order and (order.deed, order.guard))
        )
    return seen


# --- alarms


@pytest.mark.parametrize("guard", BEYOND)
def test_an_alarm_is_raised_after_three_updates_in_a_row_and_cleared_after_three_that_are_well(guards, guard):
    bad, well = BEYOND[guard], {}
    machine = guards()
    rows = [well] * 5 + [bad, bad, well, bad, bad, bad, bad, well, well, bad, well, well, well]
    notices = [(step, *n) for step, (ns, order) in enumerate(feed(machine, rows), start=1) for n in ns if not order]
    assert notices == [(11, "raised", guard, 9), (18, "cleared", guard, 9)]
    assert machine.alarms == ()


@pytest.mark.parametrize("guard", BEYOND)
def test_a_guard_that_is_off_does_not_look(guards, guard):
    assert feed(guards(f"guards.{guard}.action=off"), [{}] * 5 + [BEYOND[guard]] * 9) == [([], None)] * 14


@pytest.mark.parametrize(("tokens", "raises"), [(39.0, False), (41.0, True), (10.5, False), (9.5, True)])
def test_length_may_move_by_its_ratio_to_both_sides(guards, tokens, raises):
    machine = guards()
    feed(machine, [{}] * 5 + [{"response_tokens_mean": tokens, "score_mean": 0.7}] * 3)
    assert [alarm.guard for alarm in machine.alarms] == ["length"] * raises
    assert all("the score went from +0 to +0.7" in alarm.text for alarm in machine.alarms)


def test_entropy_and_length_are_compared_with_the_mean_of_the_first_updates(guards):
    machine = guards("guards.baseline_updates=2", "guards.entropy.patience_updates=1")
    falling = [{"entropy": value} for value in (4.0, 2.0, 0.91, 0.89)]
    assert [bool(notices) for notices, _ in feed(machine, falling)] == [False, False, False, True]  # 0.3 * 3.0 = 0.9


def test_before_the_first_updates_are_done_nothing_is_compared_with_them(guards):
    machine = guards("guards.entropy.patience_updates=1")
    assert (
        feed(machine, [{"entropy": 1.0}, {"entropy": 0.01}, {"entropy": 0.01}, {"entropy": 0.01}]) == [([], None)] * 4
    )


@pytest.mark.parametrize("measure", ["kl_seq_sum", "kl_token_mean"])
def test_an_adaptive_kl_is_held_to_three_times_the_target_in_force(guards, measure):
    machine = guards(f'ppo.kl={{type="adaptive", measure="{measure}", target=2.0}}', "guards.kl.patience_updates=1")
    other = {"kl_seq_sum": 1e9, "kl_token_mean": 1e9}
    assert machine.see(1, {**other, measure: 5.9}, 2.0) == []
    [raised] = machine.see(2, {**other, measure: 6.1}, None)  # as configured
    assert "at most 6 (3 times the target of 2, guards.kl.max_targets)" in raised.alarm.text
    [cleared] = machine.see(3, {**other, measure: 6.1}, 2.1)
    assert (raised.kind, cleared.kind) == ("raised", "cleared")


@pytest.mark.parametrize("nothing", [None, math.nan, math.inf])
def test_what_was_not_measured_neither_raises_nor_clears(guards, nothing):
    machine = guards()
    feed(machine, [BEYOND["kl"], {"kl_seq_sum": nothing}, BEYOND["kl"]])
    assert machine.alarms == ()
    feed(machine, [BEYOND["kl"]], first=4)
    assert [alarm.since_step for alarm in machine.alarms] == [1]


def evaluation(step, reward_z, judge_z, *, alarm):
    numbers = {"reward_z": reward_z, "judge_z": judge_z, "gap": reward_z - judge_z}
    return EvaluationLine(step=step, numbers=numbers, over_optimised=alarm)


def test_the_judge_gap_follows_the_alarm_of_evaluations_and_names_since_when(guards):
    machine = guards("guards.judge_gap.action=roll_back", "evaluate.every_updates=2", "guards.cooldown_updates=0")
    assert machine.see_evaluation(evaluation(0, 0.0, 0.0, alarm=False)) == []
    assert machine.see_evaluation(evaluation(2, 0.5, 0.5, alarm=False)) == []
    assert machine.see_evaluation(evaluation(4, 1.5, 0.4, alarm=False)) == []
    [raised] = machine.see_evaluation(evaluation(6, 2.0, 0.3, alarm=True))
    assert (raised.kind, raised.alarm.since_step) == ("raised", 3)
    assert "since update 2 reward +1.50, judge -0.20" in raised.alarm.text
    order = machine.decide(6)
    assert (order.deed, order.before_step) == ("roll_back", 3)
    [cleared] = machine.see_evaluation(evaluation(8, 1.0, 0.9, alarm=False))
    assert cleared.kind == "cleared"


# --- what follows


@pytest.mark.parametrize(
    ("guard", "before_step"),
    [("kl", 6), ("entropy", 6), ("repetition", 6), ("length", 6), ("clip_fraction", 7)],
)
def test_a_rollback_goes_to_weights_from_before_the_update_that_made_what_was_seen(guards, guard, before_step):
    """What was sampled for update 7 came from the weights of update 6; what update 7 clipped it did itself."""
    machine = guards(f"guards.{guard}.action=roll_back")
    feed(machine, [{}] * 6 + [BEYOND[guard]] * 2)
    machine.see(9, {**WELL, **BEYOND[guard]}, None)
    order = machine.decide(9)
    assert (order.deed, order.guard, order.before_step) == ("roll_back", guard, before_step)
    assert machine.alarms[0].since_step == 7


def test_warning_orders_nothing(guards):
    assert {order for _, order in feed(guards(), [{}] * 5 + [BEYOND["kl"]] * 9)} == {None}


def orders(machine, rows, first=1):
    return {step: order for step, (_, order) in enumerate(feed(machine, rows, first), start=first) if order}


def test_a_rate_is_lowered_again_after_the_cooldown_while_the_alarm_lasts(guards):
    machine = guards("guards.kl.action=lower_learning_rate")
    lower = ("lower_learning_rate", "kl")
    rows = [BEYOND["kl"]] * 10 + [{}] + [BEYOND["kl"]] * 5
    assert orders(machine, rows) == {3: lower, 9: lower, 15: lower}


def test_nothing_is_done_while_a_raised_measure_is_back_within_its_limit(guards):
    machine = guards("guards.kl.action=lower_learning_rate", "guards.cooldown_updates=0")
    assert list(orders(machine, [BEYOND["kl"]] * 4 + [{}, {}] + [BEYOND["kl"]])) == [3, 4, 7]


def test_the_strongest_of_several_actions_is_taken(guards):
    changes = ["guards.kl.action=lower_learning_rate", "guards.repetition.action=stop", "guards.length.action=warn",
               "guards.clip_fraction.action=roll_back"]  # fmt: skip
    bad = {name: value for guard in BEYOND for name, value in BEYOND[guard].items()}
    assert orders(guards(*changes), [{}] * 5 + [bad] * 3) == {8: ("stop", "repetition")}
    assert orders(guards(*changes[:1], *changes[2:]), [{}] * 5 + [bad] * 3) == {8: ("roll_back", "clip_fraction")}


def test_after_a_rollback_nothing_but_a_stop_follows_within_the_cooldown(guards):
    changes = ["guards.kl.action=roll_back", "guards.kl.patience_updates=1", "guards.max_rollbacks=9"]
    assert list(orders(guards(*changes, rolled_back_to=[2]), [BEYOND["kl"]] * 9)) == [1, 8, 9]  # 2 was done before
    stopping = [*changes[1:], "guards.kl.action=stop"]
    assert list(orders(guards(*stopping, rolled_back_to=[2]), [{}, {}, {}, BEYOND["kl"]])) == [4]


def test_one_rollback_more_than_allowed_is_a_stop_that_says_so(guards):
    changes = ["guards.kl.action=roll_back", "guards.max_rollbacks=2"]
    machine = guards(*changes, rolled_back_to=[2, 1])
    feed(machine, [{}] * 6 + [BEYOND["kl"]] * 2)
    machine.see(9, {**WELL, **BEYOND["kl"]}, None)
    order = machine.decide(9)
    assert order.deed == "stop"
    assert order.text.endswith("after 2 rollbacks (guards.max_rollbacks)")


def test_a_rollback_that_a_later_one_went_beyond_stays_no_guard(guards):
    """Of two rollbacks, to 7 and then to 3, only the second still stands among the updates."""
    changes = ["guards.kl.action=stop", "guards.kl.patience_updates=1"]
    rows = [{}] * 6 + [BEYOND["kl"]]
    assert list(orders(guards(*changes, rolled_back_to=[7, 3]), rows)) == [7]
    assert list(orders(guards(*changes, rolled_back_to=[3, 7]), rows)) == []


# --- cut off and gone on with

rows_of_any_kind = st.lists(
    st.sampled_from([{}, *BEYOND.values(), {"kl_seq_sum": None}]).map(lambda row: {**WELL, **row}), max_size=40
)
ACTIONS = ("guards.kl.action=lower_learning_rate", "guards.entropy.action=lower_learning_rate",
           "guards.length.action=stop", "guards.kl.patience_updates=2", "guards.baseline_updates=2",
           "guards.repetition.patience_updates=1", "guards.repetition.action=lower_learning_rate")  # fmt: skip


def rollback_to(step):
    return Rollback(
        to_step=step, from_step=step + 3, next_draw_index=0, reason="", time=datetime(2026, 1, 1, tzinfo=UTC), lineage=0
    )


@given(rows=rows_of_any_kind, data=st.data(), rolled_back_to=st.lists(st.integers(0, 20), max_size=2))
def test_a_run_that_is_cut_off_anywhere_has_the_same_alarms_and_orders_as_one_that_is_not(
    tiny, rows, data, rolled_back_to
):
    config = tiny(*ACTIONS)
    whole = feed(Guards(config, rolled_back_to), rows)
    cut = data.draw(st.integers(0, len(rows)))
    lines = [UpdateLine(step=step, metrics=row) for step, row in enumerate(rows[:cut], start=1)]
    machine, _ = replayed(config, lines, [], [rollback_to(step) for step in rolled_back_to], undecided=cut)
    if cut:
        order = machine.decide(cut)
        assert (order and (order.deed, order.guard)) == whole[cut - 1][1]
    assert feed(machine, rows[cut:], first=cut + 1) == whole[cut:]
