"""Which weights a PPO update moves, and how fast: rates, warm-ups, frozen layers, precision."""

import math
from dataclasses import replace

import pytest
import torch

from common.records import Identity
from learner.schedule import learning_rate_scale

# --- which weights move, and how fast


@pytest.mark.parametrize(("dtype", "moves"), [(torch.float32, True), (torch.bfloat16, False)])
def test_twenty_updates_move_nearly_all_weights_in_float32(tiny_policy, sample, make_learner, weights_of, dtype, moves):
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
    learner = make_learner(policy, value_warmup_updates=2, optimizer={"type": "adamw", "lr": 1e-2, "weight_decay": 0.1})
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


def test_a_cosine_falls_slowly_at_both_ends_and_fastest_in_the_middle(ppo_config):
    def scales(**changed):
        config = ppo_config(updates=5, lr_schedule="cosine", **changed)
        return [learning_rate_scale(step, config) for step in range(5)]

    root = math.sqrt(0.5)
    assert scales(lr_final_fraction=0) == pytest.approx([1, (1 + root) / 2, 0.5, (1 - root) / 2, 0])
    assert scales(lr_final_fraction=0.5) == pytest.approx([1, 0.75 + root / 4, 0.75, 0.75 - root / 4, 0.5])
    assert scales(lr_final_fraction=0, lr_warmup_updates=1)[:3] == pytest.approx([0.5, (1 + root) / 2, 0.5])
    assert learning_rate_scale(0, ppo_config(updates=1, lr_schedule="cosine", lr_final_fraction=0)) == 1


def test_a_constant_rate_only_warms_up(ppo_config):
    config = ppo_config(updates=4, lr_schedule="constant", lr_warmup_updates=1)
    assert [learning_rate_scale(step, config) for step in range(4)] == [0.5, 1, 1, 1]


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
