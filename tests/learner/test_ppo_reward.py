"""What reaches the rewards and the loss of a PPO update: reference, KL, scores, penalties, entropy, bootstrap."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from common.records import Identity
from learner.batch import Batch

CPU = torch.device("cpu")
TINY_STEP = {"type": "adamw", "lr": 1e-12}
SERVICE = {"reference": "service", "kl": {"type": "fixed", "coef": 0.1}}


def lengths_of(trajectories):
    return np.array([len(t.rollout.response_ids) for t in trajectories])


def scores_of(trajectories):
    return np.array([t.judgement.score for t in trajectories])


# --- the reference


@pytest.mark.parametrize("trainable_layers", [1, None])
def test_the_shared_trunk_is_the_reference_service_by_other_means(
    tiny_policy, sample, make_learner, weights_of, assert_close, trainable_layers
):
    """Two updates: in the second the policy has left the reference."""
    policy = tiny_policy()
    settings = {
        "trainable_layers": trainable_layers,
        "kl": {"type": "adaptive", "coef": 0.3, "target": 0.1, "horizon": 100},
        "optimizer": {"type": "adamw", "lr": 1e-2, "eps": 1e-2},
    }
    service = make_learner(policy, reference="service", **settings)
    shared = make_learner(policy, reference="shared_trunk", **settings)
    for step in range(2):
        now = service.plain.policy
        trajectories = sample(now, step=step, first_draw=16 * step, reference=policy)
        batch = Batch.of(trajectories, CPU)
        own = shared._targets(replace(batch, ref_logprobs=None))[0].ref_logprobs
        gap = torch.where(batch.response_mask, own - batch.ref_logprobs, 0.0)
        assert float(gap.abs().max()) <= 1e-5
        left = service.update(trajectories)
        right = shared.update([replace(t, ref_logprobs=None) for t in trajectories])
    assert left.metrics["kl_token_mean"] > 0.005
    assert right.metrics == pytest.approx(left.metrics, rel=1e-3, abs=1e-5)
    assert_close(weights_of(shared), weights_of(service), relative=1e-4)


def test_the_shared_trunk_stays_where_training_started(tiny_policy, sample, make_learner):
    policy = tiny_policy()
    learner = make_learner(
        policy,
        reference="shared_trunk",
        trainable_layers=1,
        kl={"type": "fixed", "coef": 0.1},
        optimizer={"type": "adamw", "lr": 1e-2},
    )
    assert learner.update(sample(policy)).metrics["kl_token_mean"] == 0
    assert abs(learner.update(sample(learner.plain.policy, step=1)).metrics["kl_token_mean"]) > 1e-3


def test_without_reference_there_is_no_kl(tiny_policy, sample, make_learner, weights_of, changed):
    policy = tiny_policy()
    learner = make_learner(policy)
    before = weights_of(learner)
    metrics = learner.update(sample(policy)).metrics
    assert not any(name.startswith("kl_") for name in metrics if name != "kl_coef")
    assert set(changed(before, weights_of(learner))) == set(before)


@pytest.mark.parametrize("reference", ["service", "shared_trunk"])
def test_a_coefficient_of_zero_is_a_run_without_reference_bit_for_bit(
    tiny_policy, sample, make_learner, weights_of, changed, reference
):
    """Trap 17 end to end, over two updates."""
    policy = tiny_policy()
    measured, free = make_learner(policy, reference=reference), make_learner(policy)
    for step in range(2):
        trajectories = sample(free.plain.policy, step=step, first_draw=16 * step, reference=tiny_policy(seed=1))
        bare = [replace(t, ref_logprobs=None) for t in trajectories]
        metrics = measured.update(trajectories if reference == "service" else bare).metrics
        free.update(bare)
        assert changed(weights_of(measured), weights_of(free)) == []
    assert abs(metrics["kl_token_mean"]) > 0


def test_a_penalty_in_the_reward_moves_the_weights_elsewhere(tiny_policy, sample, make_learner, weights_of, changed):
    """The control of the test above: it can tell."""
    policy = tiny_policy()
    trajectories = sample(policy, reference=tiny_policy(seed=1))
    penalised, free = make_learner(policy, **SERVICE), make_learner(policy)
    penalised.update(trajectories)
    free.update([replace(t, ref_logprobs=None) for t in trajectories])
    assert changed(weights_of(penalised), weights_of(free))


def exact_kl(policy, reference):
    """KL(policy || reference) in nats per token, over the whole vocabulary, in fixed contexts."""
    ids = torch.randint(3, 23, (8, 8), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        log_p, log_q = (model(input_ids=ids).logits.log_softmax(-1) for model in (policy.eval(), reference.eval()))
    return float((log_p.exp() * (log_p - log_q)).sum(-1).mean())


def test_a_kl_loss_pulls_the_policy_to_its_reference(tiny_policy, sample, make_learner, rescored):
    """The scores say nothing, so that only the KL can move the policy."""
    policy, reference = tiny_policy(sharpness=8.0), tiny_policy(sharpness=8.0, seed=1)
    learner = make_learner(
        policy, reference="service", kl_loss_coef=1.0, epochs=2, optimizer={"type": "adamw", "lr": 1e-2}
    )
    for step in range(20):
        trajectories = sample(learner.plain.policy, 32, step=step, first_draw=32 * step, reference=reference)
        learner.update(rescored(trajectories, [0.0] * 32))
    assert exact_kl(learner.plain.policy, reference) < 0.6 * exact_kl(policy, reference)


def test_an_update_without_a_finite_step_leaves_the_adaptive_coefficient_alone(tiny_policy, sample, make_learner):
    policy = tiny_policy()
    trajectories = sample(policy, reference=tiny_policy(seed=1))
    kl = {"type": "adaptive", "coef": 0.2, "measure": "kl_token_mean", "target": 1e-3, "horizon": 160}
    learner = make_learner(policy, kl=kl, reference="service")
    weight = learner.plain.value_head.weight
    hook = weight.register_hook(lambda gradient: gradient * float("nan"))
    assert not learner.update(trajectories).is_finite
    assert learner.controller.coef == 0.2
    hook.remove()
    learner.update(trajectories)
    assert learner.controller.coef != 0.2


def test_the_adaptive_coefficient_moves_once_per_update_and_is_reported_as_it_was_used(
    tiny_policy, sample, make_learner
):
    policy, reference = tiny_policy(sharpness=8.0), tiny_policy(sharpness=8.0, seed=1)
    learner = make_learner(
        policy,
        reference="service",
        kl={"type": "adaptive", "coef": 0.2, "measure": "kl_token_mean", "target": 1e-3, "horizon": 160},
        optimizer=TINY_STEP,
    )
    seen = [
        learner.update(sample(policy, step=step, first_draw=16 * step, reference=reference)).metrics["kl_coef"]
        for step in range(3)
    ]
    grown = 1 + 0.2 * 16 / 160  # far above the target: the largest step up
    assert seen == pytest.approx([0.2, 0.2 * grown, 0.2 * grown**2])


# --- the objective and the reward


def test_the_entropy_bonus_raises_entropy_and_nothing_else_does(
    tiny_policy, sample, make_learner, rescored, weights_of, changed
):
    policy = tiny_policy(sharpness=10.0)
    entropy = {}
    for coef in (0.0, 1.0):
        learner = make_learner(policy, entropy_coef=coef, epochs=1, optimizer={"type": "adamw", "lr": 3e-3})
        before = weights_of(learner)
        seen = []
        for step in range(10):
            trajectories = sample(learner.plain.policy, step=step, first_draw=16 * step)
            seen.append(learner.update(rescored(trajectories, [0.0] * 16)).metrics["entropy"])
        entropy[coef] = np.mean(seen[-3:])
        if coef == 0:  # scores of 0 give no gradient at all
            assert changed(before, weights_of(learner)) == []
    assert entropy[1.0] > entropy[0.0] + 0.2


def test_scale_clip_and_missing_eos_penalty_reach_the_rewards(tiny_policy, sample, make_learner):
    """Values start at 0, so that with lambda 1 every token's return is its response's shaped score."""
    policy = tiny_policy()
    trajectories = sample(policy)
    scores, lengths = scores_of(trajectories), lengths_of(trajectories)
    truncated = np.array([t.rollout.finish == "length" for t in trajectories])
    assert 0 < truncated.sum() < 16

    def return_mean(**changed):
        return make_learner(policy, gae_lambda=1.0, **changed).update(trajectories).metrics["return_mean"]

    def expected(shaped):
        return pytest.approx((shaped * lengths).sum() / lengths.sum(), rel=1e-5)

    assert return_mean() == expected(scores)
    assert return_mean(score_scale=3.0) == expected(3 * scores)
    assert return_mean(score_scale=3.0, score_clip=1.0) == expected(np.clip(3 * scores, -1, 1))
    assert return_mean(score_clip=1.0, missing_eos_penalty=2.5) == expected(np.clip(scores, -1, 1) - 2.5 * truncated)


def test_the_kl_penalty_of_every_later_token_reaches_a_token(tiny_policy, sample, make_learner):
    policy = tiny_policy()
    trajectories = sample(policy, reference=tiny_policy(seed=1))
    metrics = make_learner(policy, gae_lambda=1.0, **SERVICE).update(trajectories).metrics
    returns, kl = [], []
    for t in trajectories:
        k1 = (t.rollout.logprobs - t.ref_logprobs).astype(np.float64)
        kl.append(k1.sum())
        returns += [t.judgement.score - 0.1 * k1[i:].sum() for i in range(len(k1))]
    assert metrics["return_mean"] == pytest.approx(np.mean(returns), rel=1e-4)
    assert metrics["kl_seq_sum"] == pytest.approx(np.mean(kl), rel=1e-4)
    assert metrics["kl_token_mean"] == pytest.approx(np.sum(kl) / len(returns), rel=1e-4)


def test_bootstrapping_adds_the_last_value_to_truncated_rows_only(
    tiny_policy, sample, make_learner, weights_of, changed
):
    """Trap 8: all values are 1.5, so that a truncated row's returns grow by just that."""
    policy = tiny_policy()
    trajectories = sample(policy, 32)
    rows = {finish: [t for t in trajectories if t.rollout.finish == finish] for finish in ("stop", "length")}
    assert min(map(len, rows.values())) >= 3
    weights, means = {}, {}
    for finish, bootstrap in [(f, b) for f in rows for b in (False, True)]:
        learner = make_learner(policy, bootstrap_truncated=bootstrap, gae_lambda=1.0, gamma=1.0)
        nn.init.constant_(learner.plain.value_head.bias, 1.5)
        means[finish, bootstrap] = learner.update(rows[finish]).metrics["return_mean"]
        weights[finish, bootstrap] = weights_of(learner)
    assert changed(weights["stop", False], weights["stop", True]) == []
    assert means["stop", True] == means["stop", False]
    assert means["length", True] == pytest.approx(means["length", False] + 1.5, rel=1e-5)
    assert changed(weights["length", False], weights["length", True])


@pytest.mark.parametrize("score", [0.0, 1.0])
def test_scores_without_variance_do_no_harm(tiny_policy, sample, make_learner, rescored, weights_of, score):
    """Trap 31, down to a batch of one token."""
    policy = tiny_policy()
    trajectories = rescored(sample(policy, reference=policy), [score] * 16)
    learner = make_learner(policy, **SERVICE)
    report = learner.update(trajectories)
    assert report.metrics["score_std"] == 0
    not_finite = {n for n, v in report.metrics.items() if not math.isfinite(v)}
    assert not_finite <= {"explained_variance"}  # nothing varies, so nothing can be explained
    single = next(t for t in trajectories if len(t.rollout.response_ids) == 1)
    learner.update([replace(single, rollout=replace(single.rollout, identity=Identity(0, 1)))])
    assert all(bool(p.isfinite().all()) for p in weights_of(learner).values())
