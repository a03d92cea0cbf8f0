"""Estimators against the exact divergences of a 3-symbol policy; measures and controllers by hand."""

import json
import math

import pytest
import torch

from common.errors import CheckpointError, NonFiniteError
from common.kl_config import AdaptiveKL, FixedKL
from learner.kl import (
    AdaptiveController,
    FixedController,
    k1,
    k2,
    k3,
    kl_seq_sum,
    kl_token_mean,
    make_controller,
)
from learner.losses import kl_loss

NAN = float("nan")


@pytest.fixture
def logits():
    return torch.tensor([0.3, -1.2, 0.7], dtype=torch.float64, requires_grad=True)


@pytest.fixture
def ref_log_p():
    return torch.log_softmax(torch.tensor([-0.5, 0.4, 0.1], dtype=torch.float64), dim=0)


def expected_loss_gradient(estimator, logits, ref_log_p):
    """Sum over symbols of p(symbol) * grad estimator(symbol): what sampling tokens and differentiating converges to."""
    log_p = torch.log_softmax(logits, dim=0)
    p = log_p.exp().detach()
    return torch.autograd.grad((p * estimator(log_p - ref_log_p)).sum(), logits)[0]


def expected_reward_gradient(estimator, logits, ref_log_p):
    """Sum over symbols of p(symbol) * estimator(symbol) * grad logprob: the policy gradient of a penalty."""
    log_p = torch.log_softmax(logits, dim=0)
    penalty = estimator(log_p - ref_log_p).detach()
    return torch.autograd.grad((log_p.exp().detach() * penalty * log_p).sum(), logits)[0]


def reverse_kl_gradient(logits, ref_log_p):
    """Of KL(policy || reference), by hand: p_i * (log_ratio_i - KL) for a softmax."""
    with torch.no_grad():
        log_p = torch.log_softmax(logits, dim=0)
        p, log_ratio = log_p.exp(), log_p - ref_log_p
        return p * (log_ratio - (p * log_ratio).sum())


def test_expected_gradient_of_the_k2_loss_is_that_of_the_reverse_kl(logits, ref_log_p):
    # Trap 18, through the loss that is trained: each symbol is a one-token response, weighed by its probability.
    p = torch.softmax(logits.detach(), dim=0)
    total = torch.zeros_like(p)
    for symbol in range(3):
        logprob = torch.log_softmax(logits, dim=0)[symbol].view(1, 1)
        loss, _ = kl_loss(logprob, ref_log_p[symbol].view(1, 1), torch.ones(1, 1, dtype=torch.bool), denominator=1)
        total += p[symbol] * torch.autograd.grad(loss, logits)[0]
    expected = reverse_kl_gradient(logits, ref_log_p)
    assert expected.abs().max() > 0.1
    torch.testing.assert_close(total, expected, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(expected_loss_gradient(k2, logits, ref_log_p), expected, rtol=1e-12, atol=1e-14)


def test_k1_as_a_loss_has_no_expected_gradient(logits, ref_log_p):
    gradient = expected_loss_gradient(k1, logits, ref_log_p)
    torch.testing.assert_close(gradient, torch.zeros_like(gradient), rtol=0, atol=1e-15)


def test_k3_as_a_loss_pulls_along_the_other_divergence(logits, ref_log_p):
    gradient = expected_loss_gradient(k3, logits, ref_log_p)
    forward_kl_gradient = (torch.softmax(logits, dim=0) - ref_log_p.exp()).detach()
    torch.testing.assert_close(gradient, forward_kl_gradient, rtol=1e-12, atol=1e-14)
    assert (gradient - reverse_kl_gradient(logits, ref_log_p)).abs().max() > 0.01


def test_of_penalties_in_the_reward_only_k1_gives_the_gradient_of_the_reverse_kl(logits, ref_log_p):
    expected = reverse_kl_gradient(logits, ref_log_p)
    torch.testing.assert_close(expected_reward_gradient(k1, logits, ref_log_p), expected, rtol=1e-12, atol=1e-14)
    assert (expected_reward_gradient(k2, logits, ref_log_p) - expected).abs().max() > 0.01
    forward_kl_gradient = (torch.softmax(logits, dim=0) - ref_log_p.exp()).detach()
    third = expected_reward_gradient(k3, logits, ref_log_p)
    torch.testing.assert_close(third, expected - forward_kl_gradient, rtol=1e-12, atol=1e-14)


def test_k1_and_k3_are_unbiased_and_k3_is_never_negative(logits, ref_log_p):
    log_p = torch.log_softmax(logits, dim=0).detach()
    p, log_ratio = log_p.exp(), log_p - ref_log_p
    kl = (p * log_ratio).sum().item()
    assert kl > 0.1
    assert (p * k3(log_ratio)).sum().item() == pytest.approx(kl, rel=1e-12)
    assert (p * k1(log_ratio)).sum().item() == pytest.approx(kl, rel=1e-12)
    assert (k1(log_ratio) < 0).any()
    assert (k3(torch.linspace(-8, 8, 1001)) >= 0).all()


def test_estimators_of_one_token_by_hand():
    log_ratio = torch.tensor([math.log(2.0)], dtype=torch.float64)
    assert k1(log_ratio).item() == math.log(2)
    assert k2(log_ratio).item() == pytest.approx(math.log(2) ** 2 / 2)
    assert k3(log_ratio).item() == pytest.approx(0.5 - 1 + math.log(2))


def test_a_large_log_ratio_is_not_clamped():
    assert k1(torch.tensor(50.0)).item() == 50.0
    assert k2(torch.tensor(-50.0)).item() == 1250.0
    assert k3(torch.tensor(-50.0)).item() == pytest.approx(math.exp(50))


def test_kl_per_sequence_and_per_token_are_two_numbers():
    kl = torch.tensor([[1.0, 2.0, 3.0], [4.0, NAN, NAN], [NAN, NAN, NAN]])
    mask = torch.tensor([[True, True, True], [True, False, False], [False, False, False]])
    assert kl_seq_sum(kl, mask).item() == 5.0
    assert kl_token_mean(kl, mask).item() == 2.5


def adaptive(coef=0.2, measure="kl_seq_sum", target=6.0, horizon=10_000):
    return AdaptiveController(coef, measure=measure, target=target, horizon=horizon)


def test_how_far_kl_is_from_its_target_is_told_in_the_measure_that_is_steered():
    measures = {"kl_seq_sum": 9.0, "kl_token_mean": 0.3}
    assert adaptive().report(measures) == {"kl_target_ratio": 1.5}
    assert adaptive(measure="kl_token_mean", target=0.1).report(measures) == {"kl_target_ratio": pytest.approx(3.0)}


@pytest.mark.parametrize(
    ("kl", "error"),
    [(6.0, 0.0), (6.6, 0.1), (5.4, -0.1), (60.0, 0.2), (0.0, -0.2), (-5.0, -0.2)],
)
def test_the_coefficient_moves_by_the_clipped_relative_error_times_n_over_horizon(kl, error):
    controller = adaptive()
    controller.update({"kl_seq_sum": kl, "kl_token_mean": 1e9}, 256)
    assert controller.coef == pytest.approx(0.2 * (1 + error * 256 / 10_000), rel=1e-12)


def test_the_controller_reads_the_measure_that_its_config_names():
    by_token = adaptive(measure="kl_token_mean", target=0.1)
    by_token.update({"kl_seq_sum": 1e9, "kl_token_mean": 0.1}, 256)
    assert by_token.coef == pytest.approx(0.2)
    with pytest.raises(KeyError, match="kl_token_mean"):
        by_token.update({"kl_seq_sum": 6.0}, 256)


def test_the_controller_brings_a_kl_that_falls_with_the_coefficient_to_its_target():
    controller = adaptive(coef=0.05)
    for _ in range(1000):
        controller.update({"kl_seq_sum": 1.8 / controller.coef}, 256)
    assert controller.coef == pytest.approx(0.3, rel=0.01)


@pytest.mark.parametrize("kl", [NAN, math.inf])
def test_a_measure_that_is_not_finite_is_an_error_and_leaves_the_coefficient(kl):
    controller = adaptive()
    with pytest.raises(NonFiniteError, match="kl_seq_sum"):
        controller.update({"kl_seq_sum": kl}, 256)
    assert controller.coef == 0.2


def test_a_horizon_that_could_turn_the_coefficient_negative_is_refused():
    with pytest.raises(ValueError, match=r"kl\.horizon=50 with 256 trajectories.*above 51\.2"):
        adaptive(horizon=50).update({"kl_seq_sum": 0.0}, 256)


def test_an_adaptive_controller_goes_on_after_a_trip_through_json():
    straight, saved = adaptive(), adaptive()
    for controller in (straight, saved):
        controller.update({"kl_seq_sum": 9.1}, 256)
    resumed = adaptive()
    resumed.load_state_dict(json.loads(json.dumps(saved.state_dict())))
    for controller in (straight, resumed):
        controller.update({"kl_seq_sum": 3.3}, 256)
    assert resumed.coef == straight.coef != 0.2


def test_a_fixed_coefficient_stays_what_the_config_says():
    controller = FixedController(0.1)
    controller.update({"kl_seq_sum": 1e9}, 256)
    controller.load_state_dict({"coef": 0.7})
    assert controller.coef == 0.1
    assert controller.state_dict() == {}


def test_an_adaptive_controller_refuses_the_state_of_a_fixed_one():
    with pytest.raises(CheckpointError, match="fixed"):
        adaptive().load_state_dict(FixedController(0.1).state_dict())


def test_the_config_chooses_the_controller_and_its_numbers():
    fixed = make_controller(FixedKL(coef=0.3))
    assert isinstance(fixed, FixedController)
    assert fixed.coef == 0.3
    made = make_controller(AdaptiveKL(coef=0.3, measure="kl_token_mean", target=0.5, horizon=1000))
    assert isinstance(made, AdaptiveController)
    made.update({"kl_token_mean": 0.55}, 100)
    assert made.coef == pytest.approx(0.3 * (1 + 0.1 * 0.1))
