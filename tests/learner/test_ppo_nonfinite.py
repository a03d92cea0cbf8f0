"""Numbers that are not finite: the step is left out and counted, the rest of the update stands, nothing spreads."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from common.errors import CorruptWeightsError, NonFiniteError
from common.records import Identity
from learner.optimizers import pack_state

ADAPTIVE = {"reference": "service", "kl": {"type": "adaptive", "coef": 0.2, "target": 0.01, "horizon": 100}}
WARMUP = {"lr_warmup_updates": 5, "lr_final_fraction": 0.5}


def poison(learner, steps):
    """Makes the gradient of a hidden matrix infinite in the optimizer steps counted from 0."""
    count = iter(range(10_000))
    parameter = dict(learner.plain.named_parameters())["policy.model.layers.0.mlp.down_proj.weight"]
    return parameter.register_hook(lambda grad: grad * math.inf if next(count) in steps else grad)


def state_of(learner):
    """All that an update may change."""
    tensors, groups = pack_state(learner.optimizers[0])
    tensors |= dict(learner.plain.named_parameters())
    copies = {name: tensor.detach().clone() for name, tensor in tensors.items()}
    groups = [{k: v for k, v in group.items() if k != "params"} for group in groups]
    return copies, groups, learner.controller.state_dict(), learner.step, learner.identity


def assert_untouched(learner, before):
    after = state_of(learner)
    assert after[1:] == before[1:]
    assert after[0].keys() == before[0].keys()
    assert [name for name in before[0] if not torch.equal(before[0][name], after[0][name])] == []


@pytest.mark.parametrize("max_grad_norm", [1.0, math.inf])
def test_a_gradient_that_is_not_finite_leaves_the_weights_alone_and_is_counted(
    tiny_policy, sample, make_learner, weights_of, changed, max_grad_norm
):
    """Trap 27: two steps of which the second is left out are one step, bit for bit, in weights and in metrics."""
    policy = tiny_policy()
    trajectories = sample(policy)
    settings = {"minibatch_sequences": 16, "max_grad_norm": max_grad_norm}
    poisoned, short = make_learner(policy, epochs=2, **settings), make_learner(policy, epochs=1, **settings)
    poison(poisoned, {1})
    report = poisoned.update(trajectories)
    expected = short.update(trajectories)
    assert changed(weights_of(poisoned), weights_of(short)) == []
    assert report.metrics == expected.metrics | {"nonfinite_steps": 1.0}
    assert (report.is_finite, report.trained) == (True, expected.trained)


def test_a_loss_that_is_not_finite_counts_even_if_its_gradient_is(tiny_policy, sample, make_learner):
    """The square of a value error overflows where its gradient, and the gradient's norm, do not."""
    policy = tiny_policy()
    learner = make_learner(policy, gae_lambda=1.0, gamma=1.0)
    nn.init.constant_(learner.plain.value_head.bias, 2e19)
    before, norms = state_of(learner), []
    clip = learner.clip
    learner.clip = lambda parameters: norms.append(clip(parameters)) or norms[-1]
    report = learner.update(sample(policy))
    assert len(norms) == 4
    assert all(math.isfinite(norm) for norm in norms), "or the test tests the gradient"
    assert not report.is_finite
    assert_untouched(learner, before)


def test_one_microbatch_that_is_not_finite_takes_its_minibatch_with_it(
    tiny_policy, sample, make_learner, rescored, weights_of, changed
):
    policy = tiny_policy()
    scores = np.zeros(16)
    scores[3] = 3e38  # in float32 its square is infinite, so the value loss of its row is
    trajectories = rescored(sample(policy), scores)
    settings = {"epochs": 1, "advantage_whitening": "none", "microbatch_sequences": 1, "max_grad_norm": math.inf}
    learner = make_learner(policy, **settings)
    report = learner.update(trajectories)
    assert report.metrics["nonfinite_steps"] == report.metrics["optimizer_steps"] == 1
    assert report.is_finite
    assert all(bool(p.isfinite().all()) for p in weights_of(learner).values())
    assert math.isfinite(report.metrics["value_loss"])


def test_an_update_without_a_finite_step_changes_nothing_and_can_be_followed_by_another(
    tiny_policy, sample, make_learner, weights_of, changed
):
    policy = tiny_policy()
    settings = ADAPTIVE | WARMUP
    learner, untouched = make_learner(policy, **settings), make_learner(policy, **settings)
    for each in (learner, untouched):  # so that there are moments, and a rate that the next update raises
        each.update(sample(policy, reference=tiny_policy(seed=1)))
    drawn = [sample(untouched.plain.policy, step=1, first_draw=d, reference=policy) for d in (16, 32)]
    before = state_of(learner)
    hook = poison(learner, range(4))
    report = learner.update(drawn[0])
    assert_untouched(learner, before)
    assert (report.is_finite, report.trained, report.step, report.identity) == (False, (), 1, Identity(0, 1))
    assert (report.metrics["nonfinite_steps"], report.metrics["optimizer_steps"]) == (4, 0)
    assert report.metrics["score_mean"] == pytest.approx(np.mean([t.judgement.score for t in drawn[0]]))
    assert all(math.isfinite(value) for value in report.metrics.values())
    assert not {"policy_loss", "grad_norm", "learning_rate", "entropy"} & report.metrics.keys(), "nothing to tell"
    hook.remove()
    reports = [each.update(drawn[1]) for each in (learner, untouched)]
    assert changed(weights_of(untouched), weights_of(learner)) == []
    assert (reports[0].metrics, reports[0].identity) == (reports[1].metrics, Identity(0, 2))


@pytest.mark.parametrize(
    "settings",
    [ADAPTIVE, {"reference": "service", "kl": {"type": "fixed", "coef": 0.0}}, {**ADAPTIVE, "epochs": 3}],
)
def test_a_kl_that_is_not_finite_counts_as_an_update_without_a_finite_step(tiny_policy, sample, make_learner, settings):
    """Also where it is only measured: a policy so far from its reference is no policy to go on from."""
    policy = tiny_policy()
    learner = make_learner(policy, **settings)
    far = [
        replace(t, ref_logprobs=np.full_like(t.ref_logprobs, -4e37)) for t in sample(policy, reference=policy)
    ]  # finite each, the sum over all rows is not
    before = state_of(learner)
    report = learner.update(far)
    assert not report.is_finite
    assert math.isinf(report.metrics["kl_seq_sum"])
    assert report.metrics["nonfinite_steps"] == 2 * settings.get("epochs", 2)
    assert_untouched(learner, before)


def test_a_step_that_makes_the_weights_not_finite_is_told_from_one_that_was_left_out(tiny_policy, sample, make_learner):
    policy = tiny_policy()
    learner = make_learner(policy, optimizer={"type": "adamw", "lr": 1e38, "weight_decay": 1e3}, epochs=4)
    with pytest.raises(CorruptWeightsError, match="after update 0 hold nan: they must be neither published nor saved"):
        learner.update(sample(policy))
    assert learner.step == 0
    assert issubclass(CorruptWeightsError, NonFiniteError)
    with pytest.raises(CorruptWeightsError):
        learner.weights()
