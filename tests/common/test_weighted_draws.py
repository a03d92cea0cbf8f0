"""Draws by weight: shares, purity, epochs of each source."""

from collections import Counter
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DataError
from common.seeds import permutation
from common.weighted_draws import WeightedDraws

SOURCES = st.lists(
    st.tuples(st.integers(1, 9), st.one_of(st.integers(1, 20), st.floats(0.01, 100))), min_size=1, max_size=5
)


def draws_of(sources, seed=3) -> WeightedDraws:
    return WeightedDraws([size for size, _ in sources], [weight for _, weight in sources], seed, 1)


@given(SOURCES, st.integers(1, 400), st.integers(0, 10**6))
def test_any_beginning_holds_the_shares_give_or_take_less_than_the_number_of_sources(sources, num_draws, seed):
    draws = draws_of(sources, seed)
    counts = Counter(draws.source_at(i)[0] for i in range(num_draws))
    total = sum(Fraction(str(weight)) for _, weight in sources)
    for source, (_, weight) in enumerate(sources):
        assert abs(counts[source] - num_draws * Fraction(str(weight)) / total) < max(1, len(sources))


def test_shares_stay_exact_far_from_the_start():
    draws = WeightedDraws([5, 5], [0.1, 0.2], 7)
    start = 10**15
    assert Counter(draws.source_at(start + i)[0] for i in range(3000)) == {0: 1000, 1: 2000}


@given(SOURCES, st.lists(st.integers(0, 10**9), min_size=1, max_size=20))
def test_a_draw_does_not_depend_on_what_was_drawn_before(sources, indices):
    jumping = draws_of(sources)
    assert [jumping.item_at(i) for i in indices] == [draws_of(sources).item_at(i) for i in indices]


@given(SOURCES)
def test_each_source_goes_through_epochs_of_its_own(sources):
    draws = draws_of(sources)
    firsts = np.cumsum([0, *(size for size, _ in sources)])
    of_source = {source: [] for source in range(len(sources))}
    for i in range(200):
        source, before = draws.source_at(i)
        assert before == len(of_source[source])
        of_source[source].append(draws.item_at(i) - firsts[source])
    for source, (size, _) in enumerate(sources):
        items = of_source[source]
        for start in range(0, len(items) - size + 1, size):
            assert sorted(items[start : start + size]) == list(range(size))


@given(SOURCES)
def test_the_length_is_the_number_of_draws_before_an_item_comes_again(sources):
    draws = draws_of(sources)
    items = [draws.item_at(i) for i in range(len(draws) + 1)]
    assert len(set(items[:-1])) == len(draws)
    assert items[-1] in items[:-1]


def test_one_source_is_drawn_as_without_weights():
    draws = WeightedDraws([11], [4.0], 5, 6)
    assert [draws.item_at(i) for i in range(22)] == [*permutation(11, 5, 6, 0), *permutation(11, 5, 6, 1)]


def test_two_epochs_of_a_source_differ_and_so_do_two_seeds():
    first, other = WeightedDraws([30, 30], [1, 1], 1), WeightedDraws([30, 30], [1, 1], 2)
    epochs = [[first.item_at(i) for i in range(start, start + 60)] for start in (0, 60)]
    assert epochs[0] != epochs[1]
    assert epochs[0] != [other.item_at(i) for i in range(60)]


def test_an_empty_source_cannot_be_drawn_from():
    with pytest.raises(DataError, match=r"\[3, 0\] items.*leave the empty one out"):
        WeightedDraws([3, 0], [1, 1], 0)
