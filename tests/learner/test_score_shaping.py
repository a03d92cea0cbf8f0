"""Scores on their way to PPO: running statistics, the order of what is done to them, and what a checkpoint keeps."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from common.errors import CheckpointError
from learner.score_shaping import Moments, ScoreShaping

RUNNING = {"type": "running"}
CENTRED = {"type": "running", "subtract_mean": True}

batches = st.lists(
    st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=6), min_size=1, max_size=6
)  # fmt: skip


def tensor(*scores):
    return torch.tensor(scores, dtype=torch.float32)


def shaping(ppo_config, **settings):
    return ScoreShaping(ppo_config(**settings))


def shape(shaping, *scores):
    """Of one update that counts, without truncated responses."""
    shaped, seen = shaping.shape(tensor(*scores), torch.zeros(len(scores), dtype=torch.bool))
    shaping.keep()
    return shaped, seen


# --- the statistics


@given(batches)
def test_merging_batch_by_batch_is_the_mean_and_spread_of_all_numbers_at_once(chunks):
    """Oracle: numpy over everything."""
    moments = Moments()
    for chunk in chunks:
        moments = moments.merged(Moments.of(tensor(*chunk)), 1.0)
    everything = np.concatenate([np.float32(chunk).astype(np.float64) for chunk in chunks])
    assert moments.weight == len(everything)
    assert moments.mean == pytest.approx(everything.mean(), abs=1e-9)
    assert moments.m2 == pytest.approx(np.square(everything - everything.mean()).sum(), rel=1e-9, abs=1e-6)


@given(batches, st.floats(0.05, 1.0))
def test_decay_weighs_each_batch_by_its_age(chunks, decay):
    """Oracle: weighted mean and spread, every number with decay to the power of its age."""
    moments = Moments()
    for chunk in chunks:
        moments = moments.merged(Moments.of(tensor(*chunk)), decay)
    numbers = np.concatenate([np.float32(chunk).astype(np.float64) for chunk in chunks])
    ages = np.repeat(np.arange(len(chunks))[::-1], [len(chunk) for chunk in chunks])
    weights = decay ** ages.astype(np.float64)
    mean = np.average(numbers, weights=weights)
    assert moments.weight == pytest.approx(weights.sum())
    assert moments.mean == pytest.approx(mean, abs=1e-8)
    assert moments.m2 == pytest.approx((weights * np.square(numbers - mean)).sum(), rel=1e-8, abs=1e-5)


@pytest.mark.parametrize("scores", [(0.0, 0.0), (3.1, 3.1, 3.1), (-1e6, -1e6), (7.5,)])
def test_scores_that_do_not_differ_are_left_alone(ppo_config, scores):
    shaped, seen = shape(shaping(ppo_config, score_normalization=RUNNING), *scores)
    assert torch.equal(shaped, tensor(*scores))
    assert seen["score_running_std"] == 1.0


# --- what is done to the scores


def test_scores_are_divided_by_the_spread_of_all_updates_so_far_and_the_one_at_hand(ppo_config):
    running = shaping(ppo_config, score_normalization=RUNNING)
    first, seen = shape(running, 1.0, 5.0)
    assert first.tolist() == [0.5, 2.5]
    assert seen == {"score_running_mean": 3.0, "score_running_std": 2.0}
    second, seen = shape(running, 2.0, 4.0)
    spread = math.sqrt((4 + 4 + 1 + 1) / 4)
    assert second.tolist() == pytest.approx([2 / spread, 4 / spread])
    assert seen == pytest.approx({"score_running_mean": 3.0, "score_running_std": spread})


def test_the_mean_is_subtracted_only_where_it_is_asked_for(ppo_config):
    kept, _ = shape(shaping(ppo_config, score_normalization=RUNNING), 1.0, 5.0)
    centred, _ = shape(shaping(ppo_config, score_normalization=CENTRED), 1.0, 5.0)
    assert (kept.tolist(), centred.tolist()) == ([0.5, 2.5], [-1.0, 1.0])


def test_the_order_is_normalise_scale_clip_and_last_the_penalty(ppo_config):
    """By hand: (1, 5, 9) has mean 5 and spread sqrt(32/3)."""
    ordered = shaping(
        ppo_config, score_normalization=CENTRED, score_scale=2.0, score_clip=1.5, missing_eos_penalty=0.25
    )
    shaped, seen = ordered.shape(tensor(1.0, 5.0, 9.0), torch.tensor([True, True, False]))
    assert 2.0 * 4 / math.sqrt(32 / 3) > 1.5, "the clip has something to do"
    assert shaped.tolist() == [-1.75, -0.25, 1.5]
    assert seen["score_clipped_fraction"] == pytest.approx(2 / 3)


def test_a_factor_has_an_effect_after_normalising(ppo_config):
    """Before it, it would cancel."""
    once, twice = (shaping(ppo_config, score_normalization=RUNNING, score_scale=s) for s in (1.0, 2.0))
    assert torch.equal(shape(twice, 1.0, 5.0)[0], 2 * shape(once, 1.0, 5.0)[0])


def test_without_normalising_and_clipping_scores_pass_and_nothing_is_measured(ppo_config):
    plain = shaping(ppo_config)
    shaped, seen = shape(plain, 1.0, -5.0)
    assert (shaped.tolist(), seen, plain.state_dict()) == ([1.0, -5.0], {}, {})


# --- what counts


def test_an_update_that_does_not_count_leaves_the_statistics_alone(ppo_config):
    running = shaping(ppo_config, score_normalization=RUNNING)
    shape(running, 1.0, 5.0)
    before = running.state_dict()
    running.shape(tensor(100.0, 200.0), torch.zeros(2, dtype=torch.bool))
    assert running.state_dict() == before
    shape(running, 1.0, 5.0)
    assert running.state_dict() == {"weight": 4.0, "mean": 3.0, "m2": 16.0}


def test_the_state_goes_through_json_bit_for_bit(ppo_config):
    cut, whole = (shaping(ppo_config, score_normalization=RUNNING | {"decay": 0.9}) for _ in range(2))
    for running in (cut, whole):
        shape(running, 0.1, 0.7, -1 / 3)
    other = shaping(ppo_config, score_normalization=RUNNING | {"decay": 0.9})
    other.load_state_dict(json.loads(json.dumps(cut.state_dict())))
    assert torch.equal(shape(other, 0.3, 1e-3)[0], shape(whole, 0.3, 1e-3)[0])
    assert other.state_dict() == whole.state_dict()


def test_a_checkpoint_of_a_run_that_did_not_normalise_is_refused(ppo_config):
    with pytest.raises(CheckpointError, match="lack weight, mean, m2: the checkpoint comes from a run with ppo"):
        shaping(ppo_config, score_normalization=RUNNING).load_state_dict({})
    plain = shaping(ppo_config)
    plain.load_state_dict({"weight": 2.0, "mean": 1.0, "m2": 1.0})
    assert plain.state_dict() == {}


# --- in the learner


@pytest.mark.parametrize("settings", [RUNNING, CENTRED | {"decay": 0.5}])
def test_an_update_learns_from_normalised_scores_and_reports_the_scores_as_they_came(
    tiny_policy, sample, make_learner, rescored, weights_of, changed, settings
):
    """Scores of another unit are the same to a learner that normalises."""
    policy = tiny_policy()
    small = sample(policy)
    large = rescored(small, [4.0 * t.judgement.score for t in small])
    one, other = (make_learner(policy, score_normalization=settings) for _ in range(2))
    first, second = one.update(small), other.update(large)
    assert changed(weights_of(one), weights_of(other)) == []
    assert second.metrics["score_std"] == pytest.approx(4 * first.metrics["score_std"])
    assert second.metrics["score_running_std"] == pytest.approx(second.metrics["score_std"])
    plain = make_learner(policy)
    plain.update(small)
    assert changed(weights_of(one), weights_of(plain))


def test_an_update_without_a_finite_step_counts_no_scores(tiny_policy, sample, make_learner):
    policy = tiny_policy()
    learner = make_learner(policy, score_normalization=RUNNING)
    hook = learner.plain.value_head.weight.register_hook(lambda gradient: gradient * math.nan)
    assert not learner.update(sample(policy)).is_finite
    assert learner.scores.state_dict()["weight"] == 0
    hook.remove()
    assert learner.update(sample(policy)).is_finite
    assert learner.scores.state_dict()["weight"] == 16
