"""Pairs of labelled texts: of different classes and like lengths, as many as can be, the same from the same seed."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.label_pairs import match_by_length, turned_round


def match(labels, words, *, tolerance=0.0, seed=0):
    texts = [f"text {i}" for i in range(len(labels))]
    return match_by_length(texts, np.array(labels), np.array(words), tolerance=tolerance, seed=seed)


@given(
    rows=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 6)), min_size=1, max_size=40),
    tolerance=st.sampled_from([0.0, 0.3]),
)
def test_every_pair_is_of_a_higher_and_a_lower_class_of_like_length(rows, tolerance):
    labels, words = (np.array(column) for column in zip(*rows, strict=True))
    higher, lower = match(labels, words, tolerance=tolerance)
    assert (labels[higher] > labels[lower]).all()
    least = np.minimum(words[higher], words[lower])
    assert (np.abs(words[higher] - words[lower]) <= tolerance * least).all()
    used = [*higher, *lower]
    assert len(used) == len(set(used))


@given(labels=st.lists(st.integers(0, 3), min_size=1, max_size=40))
def test_no_more_pairs_of_one_length_could_be_made(labels):
    """Largest matching of texts of different classes: half of them, or all that are not of the most frequent class."""
    higher, _ = match(labels, [5] * len(labels))
    most = max(np.bincount(labels))
    assert len(higher) == min(len(labels) // 2, len(labels) - most)


def test_who_meets_whom_follows_from_the_seed_and_not_from_the_order():
    rng = np.random.default_rng(0)
    texts = [f"text {i}" for i in range(60)]
    labels, words = np.arange(60) % 2, rng.integers(3, 6, 60)

    def named(order, seed):
        own = [texts[i] for i in order]
        higher, lower = match_by_length(own, labels[order], words[order], tolerance=0, seed=seed)
        return {(own[h], own[low]) for h, low in zip(higher, lower, strict=True)}

    assert named(np.arange(60), 1) == named(rng.permutation(60), 1)
    assert named(np.arange(60), 1) != named(np.arange(60), 2)


def test_about_the_asked_for_share_is_turned_round():
    texts = [f"text {i}" for i in range(4000)]
    higher, lower = np.arange(0, 4000, 2), np.arange(1, 4000, 2)
    turned = turned_round(texts, higher, lower, fraction=0.2, seed=3)
    assert turned.mean() == pytest.approx(0.2, abs=0.03)
    assert not turned_round(texts, higher, lower, fraction=0.0, seed=3).any()
    np.testing.assert_array_equal(turned, turned_round(texts, higher, lower, fraction=0.2, seed=3))
