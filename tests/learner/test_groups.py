"""Groups of samples in the learner: advantages without a value head, and what an update makes of them."""

import copy
import math

import pytest
import torch

from common.metric_catalogue import LEARNING
from learner.advantages import group_norm, rloo, zero_std_share
from learner.batch import Batch

CPU = torch.device("cpu")
LEARNED = {metric.report for metric in LEARNING if metric.report}
"""Numbers of an update that Prometheus shows."""
AHEAD = {"importance_mean", "importance_max", "importance_truncated_fraction", "fresh_kl", "stale_kl"}
"""Of them, those of generation ahead of learning."""
SERVICE = {"reference": "service", "kl": {"type": "fixed", "coef": 0.1}}
GROUPS = {"samples_per_prompt": 4, **SERVICE}
KINDS = ("rloo", "group_norm")
KL_COEF = {"rloo": 0.1, "group_norm": 0.0}
"""Of the penalty in the reward."""
WITHOUT_HEAD = {kind: GROUPS | {"advantage": kind, "kl": {"type": "fixed", "coef": KL_COEF[kind]}} for kind in KINDS}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("value", [0.1, 1 / 3, 1e6])
def test_equal_returns_give_no_advantage(dtype, value):
    returns = torch.full((6,), value, dtype=dtype)
    for compare in (rloo, group_norm):
        advantages = compare(returns, 3)
        assert advantages.dtype == dtype
        assert advantages.abs().max() < 1e-6


def test_a_not_finite_return_spoils_its_own_group_only():
    returns = torch.tensor([1.0, float("nan"), 3.0, 5.0])
    assert rloo(returns, 2).isnan().tolist() == [True, True, False, False]
    assert rloo(returns, 2)[2:].tolist() == [-2, 2]


def test_groups_without_a_difference_are_counted():
    scores = torch.tensor([1.0, 1.0, 0.1, 0.2, -3.0, -3.0, 7.0, 7.0])
    assert zero_std_share(scores, 2).item() == 0.75
    assert zero_std_share(scores, 4).item() == 0


def returns_of(batch, old, kl_coef):
    k1 = torch.where(batch.response_mask, old.logprobs - batch.ref_logprobs, 0.0)
    return (batch.scores - kl_coef * k1.sum(1)).tolist()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("score_scale", [1.0, 0.5])
def test_the_first_gradient_is_that_of_the_loss_written_out(
    tiny_policy, sample, make_learner, gradients, assert_close, kind, score_scale
):
    """Trap 17: the KL of a response reaches its advantage exactly once, and the value head reaches nothing."""
    policy = tiny_policy()
    trajectories = sample(policy, reference=tiny_policy(seed=1), samples_per_prompt=4)
    learner = make_learner(
        policy,
        double=True,
        epochs=1,
        minibatch_sequences=16,
        score_scale=score_scale,
        max_grad_norm=math.inf,
        **WITHOUT_HEAD[kind],
    )
    torch.nn.init.normal_(learner.plain.value_head.weight)
    steps, model = gradients(learner), copy.deepcopy(learner.plain)
    learner.update(trajectories)
    batch = Batch.of(trajectories, CPU)
    out = model(batch.input_ids, batch.prompt_lengths, batch.response_lengths, batch.num_slots, 1.0)
    returns = returns_of(batch, out, KL_COEF[kind] / score_scale)
    total = 0.0
    for start in range(0, 16, 4):
        group = torch.tensor(returns[start : start + 4], dtype=torch.float64) * score_scale
        centred = group - group.mean()
        advantages = centred * 4 / 3 if kind == "rloo" else centred / (group.std() + 1e-4)
        for row, advantage in enumerate(advantages.tolist(), start):
            length = int(batch.response_lengths[row])
            total = total - advantage * out.logprobs[row, :length].sum()
    (total / int(batch.response_mask.sum())).backward()
    expected = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    assert not any("value_head" in name for name in steps[0])
    assert_close(steps[0], expected, relative=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_value_head_there_is_no_value_loss_and_the_head_stays(
    tiny_policy, sample, make_learner, weights_of, changed, kind
):
    policy = tiny_policy()
    learner = make_learner(policy, **WITHOUT_HEAD[kind])
    before = weights_of(learner)
    report = learner.update(sample(policy, reference=tiny_policy(seed=1), samples_per_prompt=4))
    moved = changed(before, weights_of(learner))
    assert moved
    assert not [name for name in moved if "value_head" in name]
    absent = {"value_loss", "value_clip_fraction", "explained_variance", "kl_target_ratio"}
    assert LEARNED - AHEAD - report.metrics.keys() == absent
    assert all(math.isfinite(v) for v in report.metrics.values())
    assert report.trained == tuple((draw, k) for draw in range(4) for k in range(4))


def test_with_gae_groups_are_samples_like_any_others(tiny_policy, sample, make_learner, weights_of, changed):
    policy = tiny_policy()
    grouped, single = make_learner(policy, **GROUPS), make_learner(policy, **SERVICE)
    trajectories = sample(policy, reference=tiny_policy(seed=1), samples_per_prompt=4)
    a, b = (learner.update(trajectories) for learner in (grouped, single))
    assert changed(weights_of(grouped), weights_of(single)) == []
    assert a.metrics["zero_std_group_share"] >= 0
    assert {k: v for k, v in a.metrics.items() if k != "zero_std_group_share"} == b.metrics


def test_a_missing_sample_of_a_group_is_refused_before_anything_moves(
    tiny_policy, sample, make_learner, weights_of, changed
):
    policy = tiny_policy()
    learner = make_learner(policy, advantage="rloo", **GROUPS)
    before = weights_of(learner)
    trajectories = sample(policy, reference=policy, samples_per_prompt=4)
    with pytest.raises(ValueError, match=r"draw 1 has samples \[0, 2, 3\], but samples_per_prompt is 4"):
        learner.update([*trajectories[:5], *trajectories[6:]])
    assert changed(before, weights_of(learner)) == []


@pytest.mark.parametrize(
    ("kind", "kl_coef"), [("gae", 0.0), ("gae", 0.5), ("rloo", 0.0), ("rloo", 0.5), ("group_norm", 0.0)]
)
def test_zero_kl_and_equal_scores_teach_nothing_and_kl_alone_pulls_back(
    tiny_policy, sample, make_learner, rescored, kind, kl_coef
):
    policy = tiny_policy()
    trajectories = rescored(sample(policy, reference=tiny_policy(seed=1), samples_per_prompt=4), [0.25] * 16)
    learner = make_learner(
        policy,
        advantage=kind,
        samples_per_prompt=4,
        reference="service",
        kl={"type": "fixed", "coef": kl_coef},
        advantage_whitening="none",
        epochs=1,
        minibatch_sequences=16,
    )
    metrics = learner.update(trajectories).metrics
    assert metrics["zero_std_group_share"] == 1
    if kind != "gae":
        assert (metrics["advantage_std"] < 1e-6) == (kl_coef == 0)
        assert metrics["return_mean"] == pytest.approx(0.25 - kl_coef * metrics["kl_seq_sum"], rel=1e-4)
