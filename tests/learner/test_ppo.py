"""One PPO update end to end: its ratio, its gradient, and what it must not depend on."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from common.flat_parameters import can_lie_on
from common.metric_catalogue import LEARNING
from common.modeling import PolicyWithValueHead
from common.records import Identity
from common.weights import buffer_hash, distinct_parameters, flatten, rest_hash
from learner.batch import Batch

CPU = torch.device("cpu")
LEARNED = {metric.report for metric in LEARNING if metric.report}
"""Numbers of an update that Prometheus shows."""
AHEAD = {"importance_mean", "importance_max", "importance_truncated_fraction", "fresh_kl", "stale_kl"}
"""Of them, those of generation ahead of learning."""
TINY_STEP = {"type": "adamw", "lr": 1e-12}
SERVICE = {"reference": "service", "kl": {"type": "fixed", "coef": 0.1}}


def lengths_of(trajectories):
    return np.array([len(t.rollout.response_ids) for t in trajectories])


def scores_of(trajectories):
    return np.array([t.judgement.score for t in trajectories])


# --- the ratio starts at 1


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("microbatch", [1, 2, 4, None])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_the_ratio_is_one_before_any_step_and_worker_and_learner_agree(
    tiny_policy, sample, make_learner, kind, microbatch, temperature
):
    """Traps 1, 3, 13: ragged rows, any microbatch, absolute and rotary positions."""
    policy = tiny_policy(kind)
    trajectories = sample(policy, temperature=temperature)
    assert len(set(lengths_of(trajectories))) > 3
    learner = make_learner(policy, microbatch_sequences=microbatch, temperature=temperature, optimizer=TINY_STEP)
    metrics = learner.update(trajectories).metrics
    squared_log_ratios = 2 * metrics["approx_kl"] * metrics["response_tokens"] * 2  # of two epochs
    assert math.sqrt(abs(squared_log_ratios)) < 1e-4  # bounds the largest of them
    assert abs(metrics["ratio_max"] - 1) < 1e-4
    assert metrics["clip_fraction"] == 0
    assert metrics["logprob_gap_max"] < 1e-4


def test_the_logprob_gap_shows_a_worker_with_other_weights(tiny_policy, sample, make_learner):
    metrics = make_learner(tiny_policy(seed=1)).update(sample(tiny_policy(seed=0))).metrics
    assert metrics["logprob_gap_max"] > 0.1


def test_a_learner_turns_every_dropout_off(tiny_policy, sample, make_learner):
    """Trap 2."""
    policy = tiny_policy("gpt2", dropout=0.5)
    policy.train()
    learner = make_learner(policy, optimizer=TINY_STEP)
    dropouts = [m for m in learner.model.modules() if isinstance(m, nn.Dropout)]
    assert len(dropouts) > 4
    assert all(m.p == 0 for m in dropouts)
    ids, ones = torch.arange(3, 15)[None], torch.ones(1, dtype=torch.int64)
    first, second = (learner.model(ids, ones, 11 * ones, 11, 1.0) for _ in range(2))
    assert torch.equal(first.logprobs, second.logprobs)
    trajectories = sample(tiny_policy("gpt2"))
    for _ in range(2):  # an update leaves it off
        metrics = learner.update([replace(t, rollout=replace(t.rollout, identity=learner.identity))
                                  for t in trajectories]).metrics  # fmt: skip
        assert abs(metrics["ratio_max"] - 1) < 1e-4
        assert metrics["logprob_gap_max"] < 1e-4


# --- the gradient


@pytest.mark.parametrize("whitening", ["none", "minibatch", "batch"])
def test_microbatches_add_up_to_the_minibatch(
    tiny_policy, sample, make_learner, gradients, weights_of, assert_close, whitening
):
    """Trap 12, with all four losses; and padded equals unpadded, for microbatches of 1 hold no padding."""
    policy, reference = tiny_policy(), tiny_policy(seed=1)
    trajectories = sample(policy, reference=reference)
    seen = {}
    for microbatch in (1, 2, 4, 8, None):
        learner = make_learner(
            policy,
            double=True,
            microbatch_sequences=microbatch,
            advantage_whitening=whitening,
            reference="service",
            kl_loss_coef=0.3,
            entropy_coef=0.2,
            value_coef=0.5,
            value_clip_eps=0.2,
            max_grad_norm=math.inf,
            optimizer={"type": "adamw", "lr": 1e-3, "eps": 1e-2},
        )
        steps = gradients(learner)
        report = learner.update(trajectories)
        seen[microbatch] = (steps, weights_of(learner), report.metrics)
    steps, weights, metrics = seen[None]
    assert len(steps) == 4  # two epochs of two minibatches
    for microbatch in (1, 2, 4, 8):
        for mine, whole in zip(seen[microbatch][0], steps, strict=True):
            assert_close(mine, whole, relative=1e-5)
        assert_close(seen[microbatch][1], weights, relative=1e-7)
        assert seen[microbatch][2] == pytest.approx(metrics, rel=1e-4, abs=1e-6)


def naive_targets(batch, old, refs, *, gamma, gae_lambda, kl_coef):
    """Rewards, advantages (as sums over all later errors) and returns, row by row in Python."""
    old_values, k1 = old.values.tolist(), (old.logprobs.detach() - refs).tolist()
    advantages, returns = torch.zeros_like(refs), torch.zeros_like(refs)
    for b, length in enumerate(batch.response_lengths.tolist()):
        values = [*old_values[b][:length], 0.0]
        rewards = [-kl_coef * k1[b][t] for t in range(length)]
        rewards[-1] += float(batch.scores[b])
        errors = [rewards[t] + gamma * values[t + 1] - values[t] for t in range(length)]
        for t in range(length):
            advantages[b, t] = sum((gamma * gae_lambda) ** (k - t) * errors[k] for k in range(t, length))
            returns[b, t] = advantages[b, t] + values[t]
    return advantages, returns


def test_the_first_gradient_is_that_of_the_loss_written_out(tiny_policy, sample, make_learner, gradients, assert_close):
    """Trap 17, and every sign and weight of the total: KL in the reward reaches the gradient exactly once."""
    policy = tiny_policy()
    trajectories = sample(policy, reference=tiny_policy(seed=1))
    learner = make_learner(
        policy,
        double=True,
        epochs=1,
        minibatch_sequences=16,
        gamma=0.9,
        gae_lambda=0.8,
        advantage_whitening="none",
        entropy_coef=0.2,
        value_coef=0.5,
        max_grad_norm=math.inf,
        **SERVICE,
    )
    with torch.no_grad():
        learner.plain.value_head.weight.normal_(generator=torch.Generator().manual_seed(0))
    steps = gradients(learner)
    model = copy.deepcopy(learner.plain)
    learner.update(trajectories)
    batch = Batch.of(trajectories, CPU)
    out = model(batch.input_ids, batch.prompt_lengths, batch.response_lengths, batch.num_slots, 1.0)
    advantages, returns = naive_targets(batch, out, batch.ref_logprobs, gamma=0.9, gae_lambda=0.8, kl_coef=0.1)
    total = 0.0
    for b, length in enumerate(batch.response_lengths.tolist()):
        for t in range(length):
            total = total - advantages[b, t] * out.logprobs[b, t]  # the ratio is 1: its gradient is logprob's
            total = total + 0.5 * 0.5 * (out.values[b, t] - returns[b, t]) ** 2
            total = total - 0.2 * out.entropy[b, t]
    (total / int(batch.response_mask.sum())).backward()
    expected = {n: p.grad for n, p in model.named_parameters()}
    assert_close(steps[0], expected, relative=1e-5)


def test_the_gradient_is_clipped_to_its_norm(tiny_policy, sample, make_learner, gradients):
    policy = tiny_policy()
    learner = make_learner(policy, max_grad_norm=1e-3)
    steps = gradients(learner)
    report = learner.update(sample(policy))
    for step in steps:
        assert float(torch.cat([g.flatten() for g in step.values()]).norm()) == pytest.approx(1e-3, rel=1e-3)
    assert report.metrics["grad_norm"] > 1e-2  # reported before clipping


def test_what_padding_holds_changes_nothing(tiny_policy, sample):
    """Right padding under causal attention: garbage ids behind a row leave its live slots bit for bit."""
    policy = tiny_policy()
    model = PolicyWithValueHead(policy)
    nn.init.normal_(model.value_head.weight)
    batch = Batch.of(sample(policy), CPU)
    lengths = batch.prompt_lengths + batch.response_lengths
    dead = torch.arange(batch.input_ids.shape[1])[None, :] >= lengths[:, None]
    garbage = torch.where(dead, torch.randint(0, 23, batch.input_ids.shape), batch.input_ids)
    assert not torch.equal(garbage, batch.input_ids)
    rest = (batch.prompt_lengths, batch.response_lengths, batch.num_slots, 1.0)
    with torch.no_grad():
        clean, dirty = model(batch.input_ids, *rest), model(garbage, *rest)
        for name in ("logprobs", "entropy", "values"):
            assert torch.equal(getattr(clean, name)[batch.response_mask], getattr(dirty, name)[batch.response_mask])
        assert torch.equal(clean.last_values, dirty.last_values)
        for row in range(len(batch)):
            alone = batch.rows(torch.tensor([row]))
            out = model(alone.input_ids, alone.prompt_lengths, alone.response_lengths, alone.num_slots, 1.0)
            n = alone.num_slots
            torch.testing.assert_close(out.logprobs[0], clean.logprobs[row, :n], atol=1e-5, rtol=0)
            torch.testing.assert_close(out.values[0], clean.values[row, :n], atol=1e-5, rtol=0)
            torch.testing.assert_close(out.last_values[0], clean.last_values[row], atol=1e-5, rtol=0)


def test_a_value_is_of_the_state_before_its_token_and_the_last_of_the_state_after(tiny_policy):
    model = PolicyWithValueHead(tiny_policy())
    nn.init.normal_(model.value_head.weight)
    ids = torch.tensor([[5, 6, 7, 8, 9, 10]])
    with torch.no_grad():
        hidden = model.policy(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
        by_hand = model.value_head(hidden).squeeze(-1)
        out = model(ids, torch.tensor([2]), torch.tensor([3]), 3, 1.0)  # prompt 5 6, response 7 8 9, then padding
    torch.testing.assert_close(out.values[0], by_hand[1:4])
    torch.testing.assert_close(out.last_values[0], by_hand[4])


# --- one update as a whole


def test_the_order_in_which_samples_arrive_changes_nothing(tiny_policy, sample, make_learner, weights_of, changed):
    policy = tiny_policy()
    trajectories = sample(policy, reference=tiny_policy(seed=1))
    first, second = make_learner(policy, **SERVICE), make_learner(policy, **SERVICE)
    a = first.update(trajectories)
    b = second.update([trajectories[i] for i in np.random.default_rng(0).permutation(16)])
    assert changed(weights_of(first), weights_of(second)) == []
    assert (a.metrics, a.trained) == (b.metrics, b.trained)
    assert a.trained == tuple((i, 0) for i in range(16))


def test_the_minibatch_order_follows_from_the_run_seed(tiny_policy, sample, make_learner, weights_of, changed):
    policy = tiny_policy()
    trajectories = sample(policy)
    learners = [make_learner(policy, run_seed=seed) for seed in (5, 5, 6)]
    for learner in learners:
        learner.update(trajectories)
    same, again, other = map(weights_of, learners)
    assert changed(same, again) == []
    assert changed(same, other)


def test_every_sample_is_trained_once_an_epoch(tiny_policy, sample, make_learner):
    metrics = make_learner(tiny_policy(), epochs=3).update(trajectories := sample(tiny_policy())).metrics
    assert metrics["optimizer_steps"] == 6
    assert metrics["response_tokens"] == lengths_of(trajectories).sum()


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (lambda rows: [*rows, rows[3]], "draw 3, sample 0 came twice"),
        (lambda rows: [replace(rows[0], rollout=replace(rows[0].rollout, identity=Identity(0, 7)))], "weights 0.7"),
        (lambda rows: [], "at least one trajectory"),
    ],
)
def test_what_cannot_be_trained_on_is_refused_before_anything_moves(
    tiny_policy, sample, make_learner, weights_of, changed, break_it, message
):
    """Traps 23, 26: samples of other weights, and a retried sample."""
    policy = tiny_policy()
    learner = make_learner(policy)
    before = weights_of(learner)
    with pytest.raises(ValueError, match=message):
        learner.update(break_it(sample(policy)))
    assert changed(before, weights_of(learner)) == []
    assert learner.step == 0


def test_a_report_holds_every_declared_metric_and_all_are_finite(tiny_policy, sample, make_learner):
    policy = tiny_policy()
    learner = make_learner(policy, reference="service", kl={"type": "adaptive"}, entropy_coef=0.01, value_clip_eps=0.2)
    trajectories = sample(policy, reference=tiny_policy(seed=1))
    report = learner.update(trajectories)
    assert LEARNED - AHEAD - {"zero_std_group_share"} <= report.metrics.keys()
    assert [n for n, v in report.metrics.items() if not math.isfinite(v)] == []
    assert all(type(v) is float for v in report.metrics.values())
    assert report.metrics["score_mean"] == pytest.approx(scores_of(trajectories).mean())
    assert report.metrics["response_tokens_mean"] == pytest.approx(lengths_of(trajectories).mean())
    assert (report.step, report.identity) == (1, Identity(0, 1))
    assert report.seconds.keys() == {"prepare", "train", "flatten"}


def test_a_report_shows_the_best_and_the_worst_responses(tiny_policy, sample, make_learner):
    policy, reference = tiny_policy(), tiny_policy(seed=1)
    trajectories = sample(policy, reference=reference)
    samples = make_learner(policy, **SERVICE).update(trajectories).samples
    ranked = np.sort(scores_of(trajectories))
    assert [s.score for s in samples if s.kind == "best"] == ranked[::-1][:2].tolist()
    assert [s.score for s in samples if s.kind == "worst"] == ranked[:2].tolist()
    shown = {s.draw_index: s for s in samples}
    for t in trajectories:
        if s := shown.get(t.rollout.draw_index):
            assert s.kl_seq_sum == pytest.approx(float((t.rollout.logprobs - t.ref_logprobs).sum()))
            assert np.array_equal(s.response_ids, t.rollout.response_ids)


def test_published_weights_are_a_copy_without_the_value_head(tiny_policy, sample, make_learner):
    """Traps 21, 22: a tied head is sent once; an update behind the publish does not reach the buffer."""
    policy = tiny_policy()
    learner = make_learner(policy)
    handle = learner.weights()
    kept = handle.ref.copy()
    learner.update(sample(policy))
    assert np.array_equal(handle.ref, kept)
    assert handle.identity == Identity(0, 0)
    assert learner.weights().identity == Identity(0, 1)
    assert learner.weights().hash != handle.hash
    names = [spec.name for spec in handle.manifest]
    assert not any("value_head" in name or "lm_head" in name for name in names)
    assert handle.ref.size == sum(p.numel() for p in policy.parameters())
    assert can_lie_on(distinct_parameters(policy), handle.ref, handle.manifest), "a worker needs no copy of its own"


def test_an_update_tells_the_hash_of_what_is_published_and_the_policy_is_hashed_once(
    tiny_policy, sample, make_learner, monkeypatch
):
    hashed = []

    def counted(buffer):
        hashed.append(buffer)
        return buffer_hash(buffer)

    monkeypatch.setattr("learner.flat_policy.buffer_hash", counted)
    policy = tiny_policy()
    learner = make_learner(policy)
    report = learner.update(sample(policy))
    handle = learner.weights()
    assert len(hashed) == 1
    assert report.weights_hash == f"{buffer_hash(handle.ref):016x}" == f"{handle.hash:016x}"
    assert np.array_equal(handle.ref, flatten(learner.plain.policy)[0])
    assert learner.weights().ref is not handle.ref, "a buffer that was published is nobody else's"


def test_lent_weights_are_the_policys_own_memory(tiny_policy, sample, make_learner):
    policy = tiny_policy()
    learner = make_learner(policy)
    lent = learner.lend_weights()
    learner.update(sample(policy))
    assert buffer_hash(lent.ref) == learner.lend_weights().hash != lent.hash


def test_of_a_frozen_trunk_only_what_is_trained_is_published(tiny_policy, sample, make_learner):
    policy = tiny_policy()
    learner = make_learner(policy, trainable_layers=1)
    handle = learner.weights()
    trained = {name for name, p in learner.plain.policy.named_parameters() if p.requires_grad}
    assert {spec.name for spec in handle.manifest} == trained
    assert handle.rest_hashes["float32"] == rest_hash(policy, trained)
    learner.update(sample(policy))
    later = learner.weights()
    assert later.hash != handle.hash
    assert later.rest_hashes == handle.rest_hashes


def test_an_update_that_changed_nothing_has_no_hash_and_leaves_nothing_to_publish(tiny_policy, sample, make_learner):
    policy = tiny_policy()
    learner = make_learner(policy, kl={"type": "fixed", "coef": 0.1}, reference="service")
    before = learner.weights()
    far = [replace(t, ref_logprobs=np.full_like(t.ref_logprobs, -4e37)) for t in sample(policy, reference=policy)]
    report = learner.update(far)
    assert not report.is_finite
    assert report.weights_hash == ""
    assert learner.weights().hash == before.hash


def test_a_value_network_of_its_own_learns_and_is_not_published(tiny_policy, sample, make_learner, weights_of, changed):
    policy = tiny_policy()
    learner = make_learner(policy, value_network="own", value_head_lr=1e-2)
    before, published = weights_of(learner), {spec.name for spec in learner.weights().manifest}
    assert published == {name for name, _ in policy.named_parameters()}
    learner.update(sample(policy))
    assert set(changed(before, weights_of(learner))) == set(before)
    rates = [group["lr"] for group in learner.optimizers[0].param_groups]
    assert rates == [1e-3, 1e-2], "the network has the value head's rate"


def test_a_value_network_of_its_own_leaves_the_policys_gradient_to_the_policys_loss(
    tiny_policy, sample, make_learner, gradients, assert_close
):
    policy = tiny_policy()
    seen = {}
    for coef in (0.1, 5.0):
        learner = make_learner(policy, value_network="own", value_coef=coef, max_grad_norm=float("inf"), double=True)
        noted = gradients(learner)
        learner.update(sample(policy))
        seen[coef] = {name: g for name, g in noted[0].items() if name.startswith("policy.")}
    assert_close(seen[0.1], seen[5.0], relative=1e-12)
