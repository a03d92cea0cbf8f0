"""What is said of held-out scores: by hand, and against scipy."""

import numpy as np
import pytest
from scipy.stats import pearsonr, rankdata, spearmanr

from learner.preference_loss import pairs_of
from learner.preference_measures import HISTOGRAM_BINS, measure_pairs, measure_scores, ranks


def pairs(*rankings):
    return pairs_of([np.array(r) for r in rankings], np.zeros(len(rankings), dtype=np.float32))


def test_accuracy_by_hand_an_equal_score_is_half_right():
    scores, words = np.array([2.0, 1.0, 1.0, 3.0]), np.array([5, 5, 5, 5])
    assert measure_pairs(scores, words, pairs([0, 1], [1, 2], [0, 3], [3, 1])).accuracy == pytest.approx(2.5 / 4)


def test_a_ranking_counts_once_however_many_pairs_it_has():
    """Of four texts in the wrong order and one pair in the right one, half is right."""
    scores = np.array([1.0, 2.0, 3.0, 4.0, 9.0, 8.0])
    assert measure_pairs(scores, np.ones(6, dtype=int), pairs([0, 1, 2, 3], [4, 5])).accuracy == pytest.approx(0.5)


def test_scores_that_say_how_often_they_are_right_are_calibrated():
    gap = np.log(3)  # 75 %
    scores = np.array([gap, 0.0] * 4)
    right = pairs([0, 1], [2, 3], [4, 5], [7, 6])
    assert measure_pairs(scores, np.ones(8, dtype=int), right).calibration_error == pytest.approx(0, abs=1e-6)
    always = pairs([0, 1], [2, 3], [4, 5], [6, 7])
    assert measure_pairs(scores, np.ones(8, dtype=int), always).calibration_error == pytest.approx(0.25, abs=1e-6)


def test_accuracy_is_told_apart_by_which_response_is_longer():
    """A score that is the length is right where the longer one is preferred, and wrong elsewhere."""
    words = np.array([9, 3, 2, 7, 4, 4])
    found = measure_pairs(words.astype(float), words, pairs([0, 1], [2, 3], [4, 5]))
    assert (found.accuracy_longer, found.accuracy_shorter) == (1.0, 0.0)
    assert (found.longer_fraction, found.shorter_fraction) == pytest.approx((1 / 3, 1 / 3))


def test_where_no_lengths_differ_nothing_is_said_of_them():
    found = measure_pairs(np.array([1.0, 0.0]), np.array([4, 4]), pairs([0, 1]))
    assert found.accuracy_longer is None
    assert found.accuracy_shorter is None
    assert measure_scores(np.array([1.0, 0.0]), np.array([4, 4]))["length_spearman"] is None


def test_correlations_are_those_of_scipy():
    rng = np.random.default_rng(0)
    words = rng.integers(1, 9, 200)
    scores = words + rng.normal(0, 3, 200)
    scores[:40] = np.round(scores[:40])  # ties
    found = measure_scores(scores, words)
    assert found["length_pearson"] == pytest.approx(pearsonr(scores, words).statistic)
    assert found["length_spearman"] == pytest.approx(spearmanr(scores, words).statistic)
    np.testing.assert_array_equal(ranks(words), rankdata(words))


def test_the_distribution_is_that_of_numpy():
    scores = np.random.default_rng(0).normal(1, 2, 500)
    found = measure_scores(scores, np.arange(500))
    assert found["score_mean"] == pytest.approx(scores.mean())
    assert found["score_std"] == pytest.approx(scores.std())
    assert found["score_quantiles"]["0.25"] == pytest.approx(np.quantile(scores, 0.25))
    assert sum(found["score_histogram"]["counts"]) == 500
    assert len(found["score_histogram"]["edges"]) == HISTOGRAM_BINS + 1
