"""Samples of older weights: what is measured of them, and that they teach what they should."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from learner.off_policy import importance_weights, staleness_measures


def test_a_weight_is_the_ratio_of_probabilities_up_to_the_cap_and_one_where_nothing_is():
    proximal = torch.tensor([[-1.0, -1.0, -1.0, float("nan")]])
    behaviour = torch.tensor([[-1.0, -1.5, -4.0, 7.0]])
    mask = torch.tensor([[True, True, True, False]])
    weights = importance_weights(proximal, behaviour, mask, cap=2.0)
    torch.testing.assert_close(weights, torch.tensor([[1.0, math.exp(0.5), 2.0, 1.0]]))


def test_measures_tell_rounding_apart_from_staleness():
    proximal = torch.tensor([[-1.0, -1.0], [-1.0, -2.0]])
    behaviour = torch.tensor([[-1.0, -1.0], [-1.5, -3.0]])
    mask = torch.ones(2, 2, dtype=torch.bool)
    seen = staleness_measures(proximal, behaviour, mask, ages=torch.tensor([0, 3]), cap=2.0)
    expected = {
        "staleness_mean": 1.5, "staleness_max": 3.0, "importance_max": math.e,
        "importance_mean": (1 + 1 + math.exp(0.5) + 2) / 4, "importance_truncated_fraction": 0.25,
        "fresh_kl": 0.0, "logprob_gap_max": 0.0, "stale_kl": (math.exp(0.5) - 1 - 0.5 + math.e - 1 - 1) / 2,
    }  # fmt: skip
    assert seen == pytest.approx(expected, abs=1e-6)
    assert "stale_kl" not in staleness_measures(proximal, proximal, mask, ages=torch.tensor([0, 0]), cap=2.0)


def rarer(trajectories, factor):
    """The same samples, as if a policy had drawn each token that would do so `factor` times less often."""
    return [
        replace(t, rollout=replace(t.rollout, logprobs=t.rollout.logprobs - np.float32(math.log(factor))))
        for t in trajectories
    ]


@pytest.mark.parametrize(("cap", "counts"), [(2.0, 1.5), (1.2, 1.2)])
def test_a_token_that_was_sampled_too_rarely_counts_as_much_more_up_to_the_cap(
    make_learner, tiny_policy, sample, gradients, cap, counts
):
    policy, seen = tiny_policy(), {}
    samples = rarer(sample(policy), 1.5)
    for staleness in (0, 1):
        learner = make_learner(
            policy, max_staleness=staleness, importance_cap=cap, epochs=1, minibatch_sequences=16, value_coef=0.0,
            max_grad_norm=math.inf,
        )  # fmt: skip
        seen[staleness] = gradients(learner)
        report = learner.update(samples)
        assert ("importance_max" in report.metrics) == (staleness == 1), "in synchronous mode nothing is weighed"
    [turns], [ahead] = seen[0], seen[1]
    assert report.metrics["importance_mean"] == pytest.approx(counts, rel=1e-4)
    assert report.metrics["importance_max"] == pytest.approx(1.5, rel=1e-4)
    for name, gradient in turns.items():
        torch.testing.assert_close(ahead[name], counts * gradient, rtol=1e-3, atol=1e-6)


def test_with_samples_of_its_own_a_policy_learns_the_same_whether_others_may_be_older(
    make_learner, tiny_policy, sample
):
    """Weights are 1, but for the rounding between two ways to compute a logprob."""
    policy, losses = tiny_policy(), []
    for staleness in (0, 1):
        report = make_learner(policy, max_staleness=staleness).update(sample(policy))
        losses.append(report.metrics["policy_loss"])
    assert report.metrics["importance_max"] == pytest.approx(1, abs=1e-4)
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)


@pytest.mark.parametrize(("made_at", "lineage"), [(3, 0), (1, 1)])
def test_samples_of_newer_or_dead_weights_are_refused(make_learner, tiny_policy, sample, made_at, lineage):
    policy = tiny_policy()
    learner = make_learner(copy.deepcopy(policy), max_staleness=1)
    learner.step = 2
    with pytest.raises(ValueError, match=rf"weights {lineage}\.{made_at}, but the learner holds 0\.2"):
        learner.update(sample(policy, step=made_at, lineage=lineage))
