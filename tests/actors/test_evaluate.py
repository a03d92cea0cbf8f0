"""Numbers that compare two policies, held to what one can count by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.evaluate import distinct_n, standardised_rise, win_rate

SCORES = st.lists(st.integers(-3, 3), min_size=1, max_size=30)


@pytest.mark.parametrize(
    ("n", "expected"),
    [(1, 3 / 7), (2, 4 / 5), (3, 1.0), (5, 0.0)],
)
def test_distinct_n_counts_grams_within_responses_and_leaves_out_what_is_no_word(n, expected):
    responses = [np.array([5, 6, 5, 6, 0]), np.array([6, 7, 6])]
    # Without EOS (0): 56, 65, 56 and 67, 76: 4 different pairs of 5; triples 565, 656, 676; none of five.
    assert distinct_n(responses, n, ignore=frozenset({0})) == pytest.approx(expected)


def test_a_tie_counts_half_and_the_interval_holds_the_rate():
    rate, (low, high) = win_rate(np.array([0.0, 1.0, 2.0, 0.0]), np.array([1.0, 1.0, 1.0, 1.0]))
    assert rate == (1 + 0.5 + 0 + 1) / 4
    assert 0 <= low < rate < high <= 1


@given(SCORES, st.randoms())
def test_whoever_wins_the_other_loses(scores, random):
    one = np.array(scores, dtype=float)
    other = np.array([random.randint(-3, 3) for _ in scores], dtype=float)
    rate, (low, high) = win_rate(one, other)
    back, _ = win_rate(other, one)
    assert rate + back == pytest.approx(1.0)
    assert low <= rate <= high


def test_the_interval_narrows_as_prompts_come_in():
    random = np.random.default_rng(0)
    widths = []
    for number in (25, 2500):
        _, (low, high) = win_rate(np.zeros(number), random.normal(0.3, 1, number))
        widths.append(high - low)
    assert widths[1] < widths[0] / 8


@pytest.mark.parametrize(
    ("outcomes", "expected"),
    [
        ([1.0] * 1, (1.0, 0.2065, 1.0)),
        ([1.0] * 6, (1.0, 0.6097, 1.0)),
        ([-1.0] * 20, (0.0, 0.0, 0.1611)),
        ([1.0] * 5 + [-1.0], (5 / 6, 0.4365, 0.9699)),
        ([0.0] * 16, (0.5, 0.2800, 0.7200)),
    ],
)
def test_few_prompts_and_outcomes_that_are_all_alike_have_wilson_s_interval(outcomes, expected):
    """Figures as in R: `prop.test(x, n, correct = FALSE)`, with a tie as half."""
    rate, (low, high) = win_rate(np.zeros(len(outcomes)), np.array(outcomes))
    assert (rate, low, high) == pytest.approx(expected, abs=1e-4)


def test_other_results_keep_the_bootstrap_s_interval():
    _, interval = win_rate(np.zeros(10), np.array([1.0] * 7 + [-1.0] * 3))
    assert interval == (0.4, 1.0)


def test_other_prompts_are_no_pairs():
    with pytest.raises(ValueError, match="the same prompts before and after"):
        win_rate(np.zeros(3), np.zeros(4))


@given(SCORES, st.floats(0.1, 100), st.floats(-100, 100))
def test_a_rise_is_the_same_on_any_scale(scores, scale, shift):
    before = np.array(scores, dtype=float)
    after = before + 1.5
    plain, scaled = standardised_rise(before, after), standardised_rise(scale * before + shift, scale * after + shift)
    if before.std() > 0:
        assert plain == pytest.approx(1.5 / before.std())
        assert scaled == pytest.approx(plain)
    else:
        assert plain == pytest.approx(1.5), "no spread, no scale: the plain difference"
