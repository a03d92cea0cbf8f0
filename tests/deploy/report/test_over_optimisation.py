"""The alarm: on where the reward rises and the judge does not follow, silent elsewhere, by sequences made for it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.evaluate_config import OverOptimisationConfig
from deploy.evaluation.over_optimisation import Point, divergence, is_over_optimised

CONFIG = OverOptimisationConfig(reward_rise=0.5, judge_share=0.1, in_a_row=2)


def points(*pairs):
    return [Point(10 * i, reward, judge) for i, (reward, judge) in enumerate(pairs)]


def alarms(*pairs, config=CONFIG):
    """Positions at which the alarm is on."""
    sequence = points(*pairs)
    return [i for i in range(len(sequence)) if is_over_optimised(sequence[: i + 1], config)]


@pytest.mark.parametrize(
    ("pairs", "expected"),
    [
        ([(0, 0), (1, 0.8), (2, 1.5), (3, 2.2)], []),  # the judge follows
        ([(0, 0), (1, 0.8), (2, 1.0), (3, 0.9), (4, 0.5)], [4]),  # it follows, stalls, falls
        ([(0, 0), (1, -0.2), (2, -0.5)], [2]),  # it falls from the start
        ([(0, 0), (1, 0.01), (2, 0.02), (3, 0.03)], [2, 3]),  # it creeps: no share of the rise
        ([(0, 0), (0.2, -1), (0.1, -2), (0.3, -3)], []),  # the reward does not rise: something else is wrong
        ([(0, 0), (1, -0.1), (1.2, 0.9), (2, 1.5)], []),  # one evaluation alone is noise
        ([(0, 0), (1, -0.1), (2, -0.2), (3, 2.9), (4, 3.8)], [2]),  # the judge comes after: it goes off
        ([(0, 0)], []),
        ([], []),
    ],
)
def test_the_alarm_is_on_where_the_judge_does_not_follow(pairs, expected):
    assert alarms(*pairs) == expected


def test_it_says_since_when_the_gap_has_grown_most():
    found = divergence(points((0, 0), (1, 1.5), (2, 1.4), (3, 0.5)), CONFIG)
    assert (found.since, found.reward_rise, found.judge_rise) == (10, 2.0, -1.0)


@pytest.mark.parametrize(("in_a_row", "expected"), [(1, [1, 2, 3]), (2, [2, 3]), (3, [3]), (4, [])])
def test_it_waits_for_as_many_evaluations_as_it_is_told(in_a_row, expected):
    config = CONFIG.model_copy(update={"in_a_row": in_a_row})
    assert alarms((0, 0), (1, 0), (2, 0), (3, 0), config=config) == expected


@given(st.lists(st.tuples(st.floats(-5, 5), st.floats(-5, 5)), max_size=8))
def test_stricter_settings_never_ring_more_often(pairs):
    loose = OverOptimisationConfig(reward_rise=0.2, judge_share=0.5, in_a_row=1)
    strict = OverOptimisationConfig(reward_rise=0.6, judge_share=0.1, in_a_row=2)
    assert set(alarms(*pairs, config=strict)) <= set(alarms(*pairs, config=loose))


@given(st.lists(st.floats(-5, 5), max_size=8))
def test_a_judge_that_is_the_reward_never_rings(values):
    assert alarms(*((value, value) for value in values)) == []
