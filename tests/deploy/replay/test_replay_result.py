"""Recorded and recomputed numbers side by side: what counts as the same, and how far apart the rest is."""

import json
import math

import numpy as np
import pytest

from deploy.replay.result import Replay, UpdateReplay, compare_metrics, compare_tensors, compare_weights


def update(number, *, recorded=1.0, recomputed=1.0, weights="same", tensors=None):
    metrics = compare_metrics({"kl": recorded, "loss": 2.0}, {"kl": recomputed, "loss": 2.0})
    return UpdateReplay(update=number, metrics=metrics, weights=weights, weights_hash="00", tensors=tensors)


@pytest.mark.parametrize(
    ("recorded", "recomputed", "difference"),
    [
        (0.5, 0.5, 0.0),
        (0.5, 0.25, 0.25),
        (0.5, 0.75, 0.25),
        (None, math.nan, 0.0),
        (None, math.inf, 0.0),
        (None, 0.5, math.inf),
        (0.5, math.nan, math.inf),
    ],
)
def test_two_numbers_differ_by_their_distance_and_what_is_not_finite_was_recorded_as_null(
    recorded, recomputed, difference
):
    assert compare_metrics({"x": recorded}, {"x": recomputed})["x"].difference == difference


def test_a_number_that_only_one_side_has_is_infinitely_far():
    compared = compare_metrics({"old": 1.0}, {"new": 2.0})
    assert {name: one.difference for name, one in compared.items()} == {"old": math.inf, "new": math.inf}
    assert (compared["old"].recorded, compared["old"].recomputed) == (1.0, None)


@pytest.mark.parametrize(("recorded", "verdict"), [("ab", "same"), ("ac", "differ"), ("", "not recorded")])
def test_weights_are_the_same_where_their_hashes_are(recorded, verdict):
    assert compare_weights(recorded, "ab") == verdict


def test_the_tensor_that_is_furthest_off_is_named():
    one = {"a": np.array([1.0, 2.0]), "b": np.array([[3]]), "c": np.array(4.0, np.float32)}
    assert compare_tensors(one, one).difference == 0
    assert compare_tensors(one, one).name == ""
    found = compare_tensors(one, one | {"a": np.array([1.0, 1.5]), "b": np.array([[4]])})
    assert (found.name, found.difference) == ("b", 1.0)
    assert compare_tensors(one, one | {"c": np.array(4.25)}).difference == 0.25


@pytest.mark.parametrize("other", [{}, {"a": np.ones(3)}, {"a": np.ones(2), "b": np.ones(1)}])
def test_a_tensor_that_is_missing_or_of_another_shape_is_infinitely_far(other):
    assert compare_tensors({"a": np.ones(2)}, other).difference == math.inf


def test_what_is_not_finite_is_the_same_only_as_itself():
    odd = np.array([math.nan, math.inf, -math.inf, 0.0])
    assert compare_tensors({"a": odd}, {"a": odd.copy()}).difference == 0
    for other in (0.0, math.nan, -math.inf):
        assert compare_tensors({"a": np.array([math.inf])}, {"a": np.array([other])}).difference == math.inf


def test_a_replay_is_the_same_if_all_updates_are():
    found = Replay.of("r", "s", 3, (update(4), update(5)))
    assert (found.is_same, found.first_different) == (True, None)
    assert (found.largest_metric_difference, found.largest_weight_difference) == (0.0, 0.0)


def test_the_first_update_that_differs_is_told_and_the_largest_difference_of_all():
    wrong = update(5, recomputed=1.5, weights="differ", tensors=compare_tensors({"w": np.zeros(2)}, {"w": np.ones(2)}))
    found = Replay.of("r", "s", 3, (update(4), wrong, update(6, recomputed=1.125)))
    assert (found.is_same, found.first_different) == (False, 5)
    assert (found.largest_metric_difference, found.largest_weight_difference) == (0.5, 1.0)
    assert (wrong.largest_metric.name, wrong.largest_metric.difference) == ("kl", 0.5)


def test_how_far_weights_are_apart_is_unknown_where_only_their_hashes_are_there():
    assert Replay.of("r", "s", 0, (update(1), update(2, weights="differ"))).largest_weight_difference is None
    silent = Replay.of("r", "s", 0, (update(1, weights="not recorded"),))
    assert silent.is_same
    assert silent.largest_weight_difference is None


def test_an_infinite_difference_is_null_in_json():
    found = Replay.of("r", "s", 0, (update(1, recorded=None),))
    assert json.loads(found.model_dump_json())["largest_metric_difference"] is None
