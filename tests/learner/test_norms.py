"""The length of gradients against numpy in float64."""

import gc
import math
import weakref

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from learner.norms import GradientNorm, total_norm


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("turned", [False, True], ids=["contiguous", "turned"])
def test_the_norm_is_that_of_all_numbers(dtype, turned):
    torch.manual_seed(0)
    tensors = [torch.randn(300, 70).to(dtype), torch.randn(5).to(dtype)] + [torch.randn(40, 30).to(dtype).t()] * turned
    expected = np.linalg.norm(np.concatenate([t.double().numpy().ravel() for t in tensors]))
    assert float(total_norm(tensors)) == pytest.approx(expected, rel=1e-2 if dtype == torch.bfloat16 else 1e-5)


def test_millions_of_numbers_lose_nothing_to_rounding():
    many = torch.ones(30_000_000)
    assert float(total_norm([many, many])) == pytest.approx(math.sqrt(6e7), rel=1e-5)


@pytest.mark.parametrize("wrong", [math.nan, math.inf, -math.inf, 1e30])
def test_what_is_not_finite_shows(wrong):
    tensor = torch.zeros(100)
    tensor[37] = wrong
    assert not math.isfinite(float(total_norm([torch.ones(3), tensor])))


def test_no_tensors_have_length_zero():
    assert float(total_norm([])) == 0.0


def layers():
    torch.manual_seed(1)
    return nn.ModuleList([nn.Linear(40, 40), nn.Linear(40, 40), nn.Linear(40, 40)])


def push(model, times=1):
    for _ in range(times):
        states = torch.randn(7, 40)
        for layer in model:
            states = layer(states).tanh()
        states.square().sum().backward()


def by_numpy(parameters):
    return np.linalg.norm(np.concatenate([p.grad.double().numpy().ravel() for p in parameters if p.grad is not None]))


def test_gradients_are_looked_at_as_they_are_made(monkeypatch):
    model = layers()
    norm = GradientNorm(model.parameters())
    parameters = list(model.parameters())
    push(model)
    expected = by_numpy(parameters)
    monkeypatch.setattr("learner.norms._square", lambda _: pytest.fail("read once more"))
    assert float(norm.of(parameters)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("times", [1, 3], ids=["one microbatch", "three"])
def test_whatever_happens_to_gradients_afterwards_counts(times):
    model = layers()
    norm = GradientNorm(model.parameters())
    parameters = list(model.parameters())
    push(model, times)
    assert float(norm.of(parameters)) == pytest.approx(by_numpy(parameters), rel=1e-5)
    parameters[0].grad.mul_(3)
    parameters[1].grad = torch.full_like(parameters[1], 2.0)
    parameters[2].grad = None
    assert float(norm.of(parameters)) == pytest.approx(by_numpy(parameters), rel=1e-5)
    model.zero_grad(set_to_none=True)
    assert float(norm.of(parameters)) == 0.0
    push(model)
    assert float(norm.of(parameters)) == pytest.approx(by_numpy(parameters), rel=1e-5)


def test_gradients_of_parameters_that_are_not_watched_are_read():
    model = layers()
    norm = GradientNorm([])
    push(model)
    assert float(norm.of(list(model.parameters()))) == pytest.approx(by_numpy(model.parameters()), rel=1e-5)


def test_a_model_that_nobody_wants_any_more_is_let_go():
    model = layers()
    norm = GradientNorm(model.parameters())
    push(model)
    norm.of(list(model.parameters()))
    weight = weakref.ref(model[0].weight)
    del model, norm
    gc.collect()
    assert weight() is None


@pytest.mark.parametrize("processes", [1, 2])
def test_a_learner_among_several_watches_no_gradient(tiny_policy, make_learner, monkeypatch, processes):
    """What is exchanged is written over memory of which autograd knows nothing."""
    monkeypatch.setattr(Accelerator, "num_processes", property(lambda _: processes))
    learner = make_learner(tiny_policy())
    watched = [p for p in learner.plain.parameters() if getattr(p, "_post_accumulate_grad_hooks", None)]
    assert len(watched) == (len(list(learner.plain.parameters())) if processes == 1 else 0)
