"""One PPO update end to end: its ratio, its gradient, what it must not depend on, and what its settings do."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from common.errors import NonFiniteError
from common.metrics import UPDATE_GAUGES
from common.modeling import PolicyWithValueHead
from common.records import Identity
from learner.batch import Batch
from learner.ppo import learning_rate_scale

CPU = torch.device("cpu")
TINY_STEP = {"type": "adamw", "lr": 1e-12}
SERVICE = {"reference": "service", "kl": {"type": "fixed", "coef": 0.1}}


def lengths_of(trajectories):
    return np.array([len(t.rollout.response_ids) for t in trajectories])


def scores_of(trajectories):
    return np.array([t.judgement.score for t in trajectories])


def assert_close(left, right, *, relative):
    """Every tensor differs by at most this share of the largest entry of all."""
    assert left.keys() == right.keys()
    largest = max(float(t.abs().max()) for t in right.values())
    for name in left:
        assert float((left[name] - right[name]).abs().max()) <= relative * largest, name


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
def test_microbatches_add_up_to_the_minibatch(tiny_policy, sample, make_learner, gradients, weights_of, whitening):
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


def test_the_first_gradient_is_that_of_the_loss_written_out(tiny_policy, sample, make_learner, gradients):
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


# --- gradients that are not finite


def poison(learner, steps):
    """Makes the gradient of a hidden matrix infinite in the optimizer steps counted from 0."""
    count = iter(range(10_000))
    parameter = dict(learner.plain.named_parameters())["policy.model.layers.0.mlp.down_proj.weight"]
    return parameter.register_hook(lambda grad: grad * math.inf if next(count) in steps else grad)


@pytest.mark.parametrize("max_grad_norm", [1.0, math.inf])
def test_a_gradient_that_is_not_finite_leaves_the_weights_alone_and_is_counted(
    tiny_policy, sample, make_learner, weights_of, changed, max_grad_norm
):
    """Trap 27: two steps of which the second is left out are one step, bit for bit."""
    policy = tiny_policy()
    trajectories = sample(policy)
    settings = {"minibatch_sequences": 16, "max_grad_norm": max_grad_norm}
    poisoned, short = make_learner(policy, epochs=2, **settings), make_learner(policy, epochs=1, **settings)
    poison(poisoned, {1})
    metrics = poisoned.update(trajectories).metrics
    short.update(trajectories)
    assert changed(weights_of(poisoned), weights_of(short)) == []
    assert (metrics["nonfinite_steps"], metrics["optimizer_steps"]) == (1, 1)
    assert math.isfinite(metrics["grad_norm"])


def test_an_update_without_a_finite_step_fails_and_can_be_repeated(
    tiny_policy, sample, make_learner, weights_of, changed
):
    policy = tiny_policy()
    trajectories = sample(policy)
    learner, untouched = make_learner(policy), make_learner(policy)
    before = weights_of(learner)
    hook = poison(learner, range(4))
    with pytest.raises(NonFiniteError, match=r"update 1: none of 4 optimizer steps was finite; weights 0\.0"):
        learner.update(trajectories)
    assert changed(before, weights_of(learner)) == []
    assert (learner.step, learner.identity) == (0, Identity(0, 0))
    hook.remove()
    learner.update(trajectories)
    untouched.update(trajectories)
    assert changed(weights_of(untouched), weights_of(learner)) == []


# --- which weights move, and how fast


@pytest.mark.parametrize(("dtype", "moves"), [(torch.float32, True), (torch.bfloat16, False)])
def test_twenty_updates_move_nearly_all_weights_in_float32(
    tiny_policy, sample, make_learner, weights_of, dtype, moves
):
    """Trap 28, with its control: in bfloat16 the same updates round to nothing."""
    policy = tiny_policy().to(dtype)
    learner = make_learner(policy, optimizer={"type": "adamw", "lr": 1e-6}, epochs=1, minibatch_sequences=16)
    before = weights_of(learner)
    trajectories = sample(tiny_policy())
    for step in range(20):
        learner.update([replace(t, rollout=replace(t.rollout, identity=Identity(0, step))) for t in trajectories])
    after = weights_of(learner)
    names = [n for n in before if n.startswith("policy.")]
    moved = sum(int((before[n] != after[n]).sum()) for n in names) / sum(before[n].numel() for n in names)
    assert (moved > 0.9) == moves
    assert moves or moved < 0.5


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_only_the_trainable_layers_move(tiny_policy, sample, make_learner, weights_of, changed, kind):
    policy = tiny_policy(kind)
    learner = make_learner(policy, trainable_layers=1)
    before = weights_of(learner)
    learner.update(sample(policy))
    moved = set(changed(before, weights_of(learner)))
    top = {"llama": ("policy.model.layers.1.", "policy.model.norm."), "gpt2": (
        "policy.transformer.h.1.", "policy.transformer.ln_f.")}[kind]  # fmt: skip
    assert moved == {n for n in before if n.startswith((*top, "value_head."))}


def test_in_value_warmup_only_the_value_head_moves(tiny_policy, sample, make_learner, weights_of, changed):
    policy = tiny_policy()
    learner = make_learner(
        policy, value_warmup_updates=2, optimizer={"type": "adamw", "lr": 1e-2, "weight_decay": 0.1}
    )
    start = weights_of(learner)
    for step in range(2):
        before = weights_of(learner)
        learner.update(sample(policy, step=step, first_draw=16 * step))
        assert set(changed(before, weights_of(learner))) == {"value_head.weight", "value_head.bias"}
    learner.update(sample(policy, step=2, first_draw=32))
    assert set(changed(start, weights_of(learner))) == set(start)


def test_value_warmup_teaches_the_values(tiny_policy, sample, make_learner):
    policy = tiny_policy()
    learner = make_learner(policy, value_warmup_updates=20, value_head_lr=0.05, value_coef=1.0, gae_lambda=1.0)
    trajectories = sample(policy)
    losses, explained = [], []
    for step in range(20):
        report = learner.update([replace(t, rollout=replace(t.rollout, identity=Identity(0, step)))
                                 for t in trajectories])  # fmt: skip
        losses.append(report.metrics["value_loss"])
        explained.append(report.metrics["explained_variance"])
    assert losses[-1] < 0.8 * losses[0]
    assert explained[0] == pytest.approx(0, abs=1e-6)  # it starts as a constant
    assert explained[-1] > 0.1


def test_the_value_head_has_its_own_rate(tiny_policy, sample, make_learner, weights_of):
    """AdamW's first step moves every weight by its rate, whatever the gradient."""
    policy = tiny_policy()
    trajectories = sample(policy)
    for head_lr, expected in ((3e-2, 3e-2), (None, 1e-3)):
        learner = make_learner(policy, value_head_lr=head_lr, epochs=1, minibatch_sequences=16, max_grad_norm=math.inf)
        before = weights_of(learner)
        learner.update(trajectories)
        after = weights_of(learner)
        step = {name: float((after[name] - before[name]).abs().max()) for name in before}
        assert step["value_head.weight"] == pytest.approx(expected, rel=1e-2)
        assert step["policy.model.layers.0.mlp.down_proj.weight"] == pytest.approx(1e-3, rel=1e-2)


def test_rates_warm_up_and_fall_to_their_final_share(ppo_config):
    def scales(**changed):
        config = ppo_config(updates=5, **changed)
        return [learning_rate_scale(step, config) for step in range(5)]

    assert scales() == [1, 1, 1, 1, 1]
    assert scales(lr_warmup_updates=3) == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    assert scales(lr_final_fraction=0.2) == pytest.approx([1, 0.8, 0.6, 0.4, 0.2])
    assert scales(lr_warmup_updates=1, lr_final_fraction=0) == pytest.approx([0.5, 0.75, 0.5, 0.25, 0])
    assert learning_rate_scale(0, ppo_config(updates=1, lr_final_fraction=0.5)) == 1


def test_the_scheduled_rate_is_the_one_that_is_used(tiny_policy, sample, make_learner, weights_of):
    policy = tiny_policy()
    learner = make_learner(
        policy, lr_warmup_updates=3, value_head_lr=1e-1, epochs=1, minibatch_sequences=16, max_grad_norm=math.inf
    )
    before = weights_of(learner)
    metrics = learner.update(sample(policy)).metrics
    after = weights_of(learner)
    assert metrics["learning_rate"] == pytest.approx(0.25e-3)
    moved = (after["policy.model.norm.weight"] - before["policy.model.norm.weight"]).abs().max()
    assert float(moved) == pytest.approx(0.25e-3, rel=1e-2)
    assert float((after["value_head.weight"] - before["value_head.weight"]).abs().max()) == pytest.approx(0.025, 1e-2)


# --- the reference


@pytest.mark.parametrize("trainable_layers", [1, None])
def test_the_shared_trunk_is_the_reference_service_by_other_means(
    tiny_policy, sample, make_learner, weights_of, trainable_layers
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
    learner = make_learner(
        policy, reference="service", kl={"type": "adaptive"}, entropy_coef=0.01, value_clip_eps=0.2
    )
    trajectories = sample(policy, reference=tiny_policy(seed=1))
    report = learner.update(trajectories)
    assert UPDATE_GAUGES.keys() <= report.metrics.keys()
    assert [n for n, v in report.metrics.items() if not math.isfinite(v)] == []
    assert all(type(v) is float for v in report.metrics.values())
    assert report.metrics["score_mean"] == pytest.approx(scores_of(trajectories).mean())
    assert report.metrics["response_tokens_mean"] == pytest.approx(lengths_of(trajectories).mean())
    assert (report.step, report.identity) == (1, Identity(0, 1))
    assert report.seconds.keys() == {"prepare", "train"}


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
