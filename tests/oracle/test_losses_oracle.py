"""The losses and their gradients against the papers, token by token, and against finite differences."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.kl import k1, k2, k3, kl_seq_sum, kl_token_mean
from learner.losses import entropy_bonus, kl_loss, policy_loss, value_loss
from learner.off_policy import importance_weights

lengths = st.lists(st.integers(1, 7), min_size=1, max_size=4)
seeds = st.integers(0, 2**31)
close = {"rtol": 1e-9, "atol": 1e-10}


def rows(*tensors):
    return zip(*(t.tolist() for t in tensors), strict=True)


def gradient_of(loss, leaf):
    return torch.autograd.grad(loss, leaf)[0]


@settings(max_examples=150, deadline=None)
@given(lengths=lengths, seed=seeds, eps=st.sampled_from([0.1, 0.2, 0.5]), denominator=st.integers(1, 100))
def test_policy_loss_and_gradient_are_those_of_the_paper(oracle, ragged, lengths, seed, eps, denominator):
    mask, (logprobs, old, advantages) = ragged(lengths, seed, 3)
    logprobs = torch.where(mask, old + 0.4 * logprobs, logprobs).requires_grad_()
    loss, metrics = policy_loss(logprobs, old, advantages, mask, clip_eps=eps, denominator=denominator)
    batch = list(rows(logprobs, old, advantages, mask))
    expected = -sum(oracle.policy_objective(*row, eps) for row in batch) / denominator
    gradient = [[-g / denominator for g in oracle.policy_objective_gradient(*row, eps)] for row in batch]
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-10)
    torch.testing.assert_close(gradient_of(loss, logprobs), torch.tensor(gradient, dtype=torch.float64), **close)

    clipped = sum(
        g == 0.0 and alive
        for row in batch
        for g, alive in zip(oracle.policy_objective_gradient(*row, eps), row[-1], strict=True)
    )
    drift = list(rows(old, logprobs, mask))
    assert metrics["num_clipped"].item() == clipped
    assert metrics["approx_kl_k2_sum"].item() == pytest.approx(sum(oracle.k2_sum(*r) for r in drift), rel=1e-9)
    assert metrics["approx_kl_k3_sum"].item() == pytest.approx(sum(oracle.k3_sum(*r) for r in drift), rel=1e-9)
    assert metrics["ratio_max"].item() == pytest.approx((logprobs - old).detach()[mask].exp().max().item())


@settings(max_examples=150, deadline=None)
@given(
    lengths=lengths,
    seed=seeds,
    low=st.sampled_from([0.1, 0.2]),
    high=st.sampled_from([None, 0.28, 0.6]),
    dual=st.sampled_from([None, 1.05, 1.5, 3.0]),
)
def test_clip_higher_and_dual_clip_are_those_of_the_papers(oracle, ragged, lengths, seed, low, high, dual):
    mask, (logprobs, old, advantages) = ragged(lengths, seed, 3)
    logprobs = torch.where(mask, old + 0.6 * logprobs, logprobs).requires_grad_()
    bounds = {"clip_eps": low, "clip_eps_high": high, "dual_clip": dual}
    loss, metrics = policy_loss(logprobs, old, advantages, mask, denominator=5, **bounds)
    upper = low if high is None else high
    tokens = [
        oracle.bounded_objective(lp, before, A, low, upper, dual)
        for lp, before, A in zip(logprobs[mask].tolist(), old[mask].tolist(), advantages[mask].tolist(), strict=True)
    ]
    assert loss.item() == pytest.approx(-sum(value for value, _ in tokens) / 5, rel=1e-9, abs=1e-10)
    slopes = torch.tensor([-slope / 5 for _, slope in tokens], dtype=torch.float64)
    torch.testing.assert_close(gradient_of(loss, logprobs)[mask], slopes, **close)
    far = (logprobs - old).detach().exp()[mask] > (dual or math.inf)
    assert metrics.get("num_dual_clipped", torch.tensor(0)).item() == (far & (advantages[mask] < 0)).sum().item()
    assert ("num_dual_clipped" in metrics) == (dual is not None)


def test_by_default_the_upper_bound_is_the_lower_one_and_nothing_is_clipped_twice(ragged):
    mask, (logprobs, old, advantages) = ragged([5, 3, 7], 3, 3)
    plain, _ = policy_loss(logprobs, old, advantages, mask, clip_eps=0.2, denominator=1)
    told, _ = policy_loss(logprobs, old, advantages, mask, clip_eps=0.2, clip_eps_high=0.2, denominator=1)
    far, _ = policy_loss(logprobs, old, advantages, mask, clip_eps=0.2, dual_clip=1e9, denominator=1)
    assert torch.equal(plain, told)
    assert torch.equal(plain, far)


@settings(max_examples=150, deadline=None)
@given(lengths=lengths, seed=seeds, eps=st.sampled_from([math.inf, 0.2, 1.0]), denominator=st.integers(1, 100))
def test_value_loss_and_gradient_are_the_pessimistic_squares(oracle, ragged, lengths, seed, eps, denominator):
    mask, (values, old, returns) = ragged(lengths, seed, 3)
    values.requires_grad_()
    loss, metrics = value_loss(values, old, returns, mask, clip_eps=eps, denominator=denominator)
    batch = list(rows(values, old, returns, mask))
    expected = sum(oracle.value_error(*row, eps) for row in batch) / denominator
    by_token = [oracle.value_error_gradient(*row, eps) for row in batch]
    gradient = torch.tensor(by_token, dtype=torch.float64) / denominator
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    torch.testing.assert_close(gradient_of(loss, values), gradient, **close)
    assert metrics["num_value_clipped"].item() == (gradient[mask] == 0).sum().item()


@settings(max_examples=100, deadline=None)
@given(lengths=lengths, seed=seeds, denominator=st.integers(1, 100))
def test_kl_loss_is_k2_and_its_gradient_is_the_log_ratio(oracle, ragged, lengths, seed, denominator):
    mask, (logprobs, ref) = ragged(lengths, seed, 2)
    logprobs.requires_grad_()
    loss, metrics = kl_loss(logprobs, ref, mask, denominator=denominator)
    batch = list(rows(logprobs, ref, mask))
    assert loss.item() == pytest.approx(sum(oracle.k2_sum(*r) for r in batch) / denominator, rel=1e-9)
    assert metrics["ref_kl_k2_sum"].item() == pytest.approx(sum(oracle.k2_sum(*r) for r in batch), rel=1e-9)
    assert metrics["ref_kl_k1_sum"].item() == pytest.approx(sum(oracle.k1_sum(*r) for r in batch), rel=1e-9)
    expected = torch.where(mask, logprobs.detach() - ref, 0.0) / denominator
    torch.testing.assert_close(gradient_of(loss, logprobs), expected, **close)


@settings(max_examples=50, deadline=None)
@given(lengths=lengths, seed=seeds, denominator=st.integers(1, 100))
def test_entropy_bonus_is_the_sum_over_live_tokens(ragged, lengths, seed, denominator):
    mask, (entropy,) = ragged(lengths, seed, 1)
    entropy.requires_grad_()
    bonus, metrics = entropy_bonus(entropy, mask, denominator=denominator)
    total = sum(x for row, live in rows(entropy, mask) for x, alive in zip(row, live, strict=True) if alive)
    assert bonus.item() == pytest.approx(total / denominator, rel=1e-9, abs=1e-12)
    assert metrics["entropy_sum"].item() == pytest.approx(total, rel=1e-9, abs=1e-12)
    torch.testing.assert_close(gradient_of(bonus, entropy), mask.double() / denominator, **close)


@settings(max_examples=100, deadline=None)
@given(lengths=lengths, seed=seeds)
def test_kl_measures_are_sums_of_schulmans_estimators(oracle, ragged, lengths, seed):
    mask, (logprobs, ref) = ragged(lengths, seed, 2)
    for estimator, slow in ((k1, oracle.k1_sum), (k2, oracle.k2_sum), (k3, oracle.k3_sum)):
        kl = estimator(logprobs - ref)
        by_row = [slow(*row) for row in rows(logprobs, ref, mask)]
        assert kl_seq_sum(kl, mask).item() == pytest.approx(sum(by_row) / len(lengths), rel=1e-9, abs=1e-10)
        assert kl_token_mean(kl, mask).item() == pytest.approx(sum(by_row) / sum(lengths), rel=1e-9, abs=1e-10)


@settings(max_examples=30, deadline=None)
@given(lengths=lengths, seed=seeds)
def test_autograd_agrees_with_finite_differences_away_from_the_kinks(ragged, lengths, seed):
    mask, (logprobs, old, advantages, returns) = ragged(lengths, seed, 4)
    logprobs = torch.where(mask, old + 0.1 * logprobs, logprobs)
    near_a_kink = ((logprobs - old).exp() - 1).abs().sub(0.2).abs() < 1e-4
    mask = mask & ~near_a_kink

    def total(live):
        lp = logprobs.masked_scatter(mask, live)
        policy, _ = policy_loss(lp, old, advantages, mask, clip_eps=0.2, denominator=7)
        value, _ = value_loss(lp, old, returns, mask, clip_eps=math.inf, denominator=7)
        kl, _ = kl_loss(lp, old, mask, denominator=7)
        return policy + 0.1 * value + 0.3 * kl

    live = logprobs[mask].clone().requires_grad_()
    if live.numel():
        assert torch.autograd.gradcheck(total, (live,), eps=1e-6, atol=1e-6)


@settings(max_examples=150, deadline=None)
@given(lengths=lengths, seed=seeds, cap=st.sampled_from([1.0, 1.3, 2.0, math.inf]))
def test_the_decoupled_loss_and_its_gradient_are_those_of_the_paper(oracle, ragged, lengths, seed, cap):
    mask, (logprobs, proximal, behaviour, advantages) = ragged(lengths, seed, 4)
    behaviour = torch.where(mask, proximal + 0.5 * behaviour, behaviour)
    logprobs = torch.where(mask, proximal + 0.4 * logprobs, logprobs).requires_grad_()
    weights = importance_weights(proximal, behaviour, mask, cap=cap)
    loss, _ = policy_loss(logprobs, proximal, advantages, mask, clip_eps=0.2, importance=weights, denominator=7)
    batch = list(rows(logprobs, proximal, behaviour, advantages, mask))
    tokens = [
        [
            oracle.decoupled_objective(*token, 0.2, cap) if alive else (0.0, 0.0)
            for *token, alive in zip(*row, strict=True)
        ]
        for row in batch
    ]
    expected = -sum(value for row in tokens for value, _ in row) / 7
    gradient = [[-slope / 7 for _, slope in row] for row in tokens]
    assert loss.item() == pytest.approx(expected, rel=1e-9, abs=1e-10)
    torch.testing.assert_close(gradient_of(loss, logprobs), torch.tensor(gradient, dtype=torch.float64), **close)


@settings(max_examples=30, deadline=None)
@given(lengths=lengths, seed=seeds)
def test_the_weights_of_the_decoupled_loss_are_constants_to_finite_differences(ragged, lengths, seed):
    mask, (logprobs, proximal, behaviour, advantages) = ragged(lengths, seed, 4)
    logprobs = torch.where(mask, proximal + 0.1 * logprobs, logprobs)
    mask = mask & ~(((logprobs - proximal).exp() - 1).abs().sub(0.2).abs() < 1e-4)
    weights = importance_weights(proximal, torch.where(mask, proximal + behaviour, 0.0), mask, cap=2.0)
    assert not weights.requires_grad

    def total(live):
        lp = logprobs.masked_scatter(mask, live)
        return policy_loss(lp, proximal, advantages, mask, clip_eps=0.2, importance=weights, denominator=7)[0]

    live = logprobs[mask].clone().requires_grad_()
    if live.numel():
        assert torch.autograd.gradcheck(total, (live,), eps=1e-6, atol=1e-6)
