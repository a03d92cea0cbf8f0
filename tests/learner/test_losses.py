"""The losses by hand, their gradients at the corners, NaN in dead and live slots, and micro-batches that add up."""

import itertools
import math

import pytest
import torch

from common.logprobs import token_logprobs
from learner.losses import entropy_bonus, kl_loss, policy_loss, value_loss

NAN = float("nan")


def f64(rows, requires_grad=False):
    return torch.tensor(rows, dtype=torch.float64, requires_grad=requires_grad)


def live(lengths, width):
    return torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]


def test_policy_loss_of_three_tokens_by_hand():
    # ratios 2, 0.5, 1 and advantages 1, -2, 3, eps 0.2: min(2, 1.2) + min(-1, -1.6) + 3 = 2.6; divided by 4
    old = f64([[-1, -1, -1]])
    logprobs = (old + f64([[math.log(2), math.log(0.5), 0]])).requires_grad_()
    loss, metrics = policy_loss(logprobs, old, f64([[1, -2, 3]]), live([3], 3), clip_eps=0.2, denominator=4)
    assert loss.item() == pytest.approx(-2.6 / 4)
    loss.backward()
    assert logprobs.grad.tolist() == [[0, 0, -3 / 4]]
    assert metrics["num_clipped"].item() == 2
    assert metrics["ratio_max"].item() == pytest.approx(2.0)
    assert metrics["approx_kl_k2_sum"].item() == pytest.approx(math.log(2) ** 2)
    assert metrics["approx_kl_k3_sum"].item() == pytest.approx((2 - 1 - math.log(2)) + (0.5 - 1 + math.log(2)))


def test_value_loss_of_three_tokens_by_hand():
    # V = (3, 3, 0.1), old = 0, R = (4, 1, 1), eps 1: max(1, 9), max(4, 0), max(0.81, 0.81); halved, divided by 4
    values = f64([[3, 3, 0.1]], requires_grad=True)
    loss, metrics = value_loss(values, f64([[0, 0, 0]]), f64([[4, 1, 1]]), live([3], 3), clip_eps=1.0, denominator=4)
    assert loss.item() == pytest.approx(0.5 * (9 + 4 + 0.81) / 4)
    loss.backward()
    assert values.grad.tolist() == [[0, pytest.approx(2 / 4), pytest.approx(-0.9 / 4)]]
    assert metrics["num_value_clipped"].item() == 1


def test_value_loss_without_clip_is_half_the_squared_error():
    values = f64([[3, 3, 0.1]], requires_grad=True)
    loss, metrics = value_loss(
        values, f64([[0, 100, -5]]), f64([[4, 1, 1]]), live([3], 3), clip_eps=math.inf, denominator=4
    )
    assert loss.item() == pytest.approx(0.5 * (1 + 4 + 0.81) / 4)
    assert metrics["num_value_clipped"].item() == 0


def test_kl_loss_and_entropy_bonus_of_three_tokens_by_hand():
    mask = live([3], 3)
    loss, metrics = kl_loss(f64([[-1, -2, -3]]), f64([[-2, -2, -1]]), mask, denominator=4)
    assert loss.item() == (1 + 0 + 4) / 2 / 4
    assert metrics["ref_kl_k1_sum"].item() == -1
    bonus, metrics = entropy_bonus(f64([[1, 2, 3]]), mask, denominator=4)
    assert bonus.item() == 6 / 4
    assert metrics["entropy_sum"].item() == 6


def test_at_ratio_one_the_gradient_is_minus_the_advantage_over_the_denominator():
    logprobs = f64([[-1.5, -0.1, NAN], [-3, -2, -1]], requires_grad=True)
    advantages, mask = f64([[1, -2, NAN], [0.5, 0, 7]]), live([2, 3], 3)
    loss, metrics = policy_loss(logprobs, logprobs.detach(), advantages, mask, clip_eps=0.2, denominator=5)
    loss.backward()
    torch.testing.assert_close(logprobs.grad, torch.where(mask, -advantages / 5, 0.0), rtol=1e-12, atol=0)
    assert metrics["num_clipped"].item() == 0
    assert metrics["ratio_max"].item() == 1.0


@pytest.mark.parametrize(
    ("advantage", "ratio", "is_clipped"),
    [(1, 1.3, True), (-1, 0.7, True), (1, 0.7, False), (-1, 1.3, False), (1, 1.19, False), (-1, 0.81, False)],
)
def test_the_gradient_is_zero_only_where_the_ratio_went_too_far_the_favoured_way(advantage, ratio, is_clipped):
    logprobs = f64([[math.log(ratio)]], requires_grad=True)
    loss, metrics = policy_loss(logprobs, f64([[0]]), f64([[advantage]]), live([1], 1), clip_eps=0.2, denominator=1)
    loss.backward()
    assert logprobs.grad.item() == (0 if is_clipped else pytest.approx(-advantage * ratio))
    assert metrics["num_clipped"].item() == is_clipped


@pytest.mark.parametrize(
    ("value", "target", "is_clipped"),
    [(1.3, 5, True), (-1.3, -5, True), (1.3, 1, False), (1.3, -5, False), (0.3, 5, False)],
)
def test_a_value_has_no_gradient_only_where_it_went_too_far_towards_its_return(value, target, is_clipped):
    values = f64([[value]], requires_grad=True)
    loss, metrics = value_loss(values, f64([[0]]), f64([[target]]), live([1], 1), clip_eps=1.0, denominator=1)
    loss.backward()
    assert values.grad.item() == (0 if is_clipped else pytest.approx(value - target))
    assert metrics["num_value_clipped"].item() == is_clipped


def test_rounding_counts_no_value_as_clipped():
    values = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    _, metrics = value_loss(
        values, values + 0.1, values * 3, torch.ones(64, 64, dtype=torch.bool), clip_eps=0.2, denominator=1
    )
    assert metrics["num_value_clipped"].item() == 0


READS = {
    "policy": ("logprobs", "old", "advantages"),
    "value": ("logprobs", "old", "returns"),
    "kl": ("logprobs", "ref"),
    "entropy": ("entropy",),
}
"""What each loss is computed from; the value loss borrows the logprobs as values. The first carries gradients."""
NAMES = ("logprobs", "old", "advantages", "returns", "ref", "entropy")


def random_tensors():
    mask = live([2, 4, 1], 4)
    noise = torch.randn(len(NAMES), 3, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    return dict(zip(NAMES, noise, strict=True)), mask


def compute(loss, tensors, mask):
    """Loss, metrics and gradient."""
    leaf, *constants = (tensors[name] for name in READS[loss])
    leaf = leaf.clone().requires_grad_()
    value, metrics = {
        "policy": lambda: policy_loss(leaf, *constants, mask, clip_eps=0.2, denominator=3),
        "value": lambda: value_loss(leaf, *constants, mask, clip_eps=0.2, denominator=3),
        "kl": lambda: kl_loss(leaf, *constants, mask, denominator=3),
        "entropy": lambda: entropy_bonus(leaf, mask, denominator=3),
    }[loss]()
    return value, metrics, torch.autograd.grad(value, leaf)[0]


@pytest.mark.parametrize("garbage", [NAN, math.inf, -math.inf, 1e30])
@pytest.mark.parametrize("loss", READS)
def test_garbage_at_dead_slots_reaches_neither_loss_nor_metrics_nor_gradients(loss, garbage):
    # Trap 10: 0 * NaN is NaN, in the backward pass too.
    tensors, mask = random_tensors()
    clean, clean_metrics, clean_gradient = compute(loss, tensors, mask)
    dirty = {name: torch.where(mask, t, garbage) for name, t in tensors.items()}
    value, metrics, gradient = compute(loss, dirty, mask)
    assert clean.isfinite()
    assert torch.equal(value, clean)
    assert metrics == clean_metrics
    assert torch.equal(gradient, clean_gradient)
    assert (gradient[~mask] == 0).all()


@pytest.mark.parametrize(("loss", "broken"), [(loss, name) for loss, names in READS.items() for name in names])
def test_nan_in_a_live_slot_makes_every_loss_that_reads_it_nan(loss, broken):
    # Trap 10, the other half: hiding it would train on nonsense.
    tensors, mask = random_tensors()
    tensors[broken][1, 3] = NAN
    value, _, _ = compute(loss, tensors, mask)
    assert value.isnan()


def test_an_overflowing_ratio_is_not_hidden():
    logprobs = torch.tensor([[100.0]], requires_grad=True)
    for advantage in (1.0, -1.0):
        loss, metrics = policy_loss(
            logprobs, torch.zeros(1, 1), torch.tensor([[advantage]]), live([1], 1), clip_eps=0.2, denominator=1
        )
        gradient = torch.autograd.grad(loss, logprobs)[0]
        assert not (loss.isfinite() and gradient.isfinite())
        assert metrics["ratio_max"].isinf()


class TablePolicy:
    """Three symbols: logits and value follow from the previous one alone; every number is a parameter."""

    def __init__(self):
        noise = torch.Generator().manual_seed(3)
        self.table = torch.randn(3, 3, generator=noise, dtype=torch.float64, requires_grad=True)
        self.values = torch.randn(3, generator=noise, dtype=torch.float64, requires_grad=True)
        B, R = 8, 5
        self.ids = torch.randint(3, (B, R + 1), generator=noise)
        self.mask = live([5, 1, 3, 2, 5, 1, 1, 4], R)
        start, _, _ = self.forward(self.table, self.values, slice(None))
        self.old = (start + 0.3 * torch.randn(B, R, generator=noise, dtype=torch.float64)).detach()
        self.ref = (start + 0.5 * torch.randn(B, R, generator=noise, dtype=torch.float64)).detach()
        self.advantages = torch.randn(B, R, generator=noise, dtype=torch.float64)
        self.returns = 2 * torch.randn(B, R, generator=noise, dtype=torch.float64)
        self.old_values = torch.randn(B, R, generator=noise, dtype=torch.float64)

    def forward(self, table, values, rows):
        previous, ids = self.ids[rows, :-1], self.ids[rows, 1:]
        logprobs, entropy = token_logprobs(table[previous], ids, 0.7)
        return logprobs, entropy, values[previous]

    def losses(self, table, values, rows, denominator):
        logprobs, entropy, values = self.forward(table, values, rows)
        mask, n = self.mask[rows], denominator
        return {
            "policy": policy_loss(logprobs, self.old[rows], self.advantages[rows], mask, clip_eps=0.2, denominator=n),
            "value": value_loss(values, self.old_values[rows], self.returns[rows], mask, clip_eps=0.5, denominator=n),
            "kl": kl_loss(logprobs, self.ref[rows], mask, denominator=n),
            "entropy": entropy_bonus(entropy, mask, denominator=n),
        }

    def total(self, table, values, kl_coef=0.3, rows=slice(None), denominator=22):
        losses = {name: loss for name, (loss, _) in self.losses(table, values, rows, denominator).items()}
        return losses["policy"] + 0.1 * losses["value"] + kl_coef * losses["kl"] - 0.05 * losses["entropy"]


def test_finite_differences_of_the_total_loss_agree_with_autograd():
    # Trap 17: a term that is counted twice or lives in no_grad shows here.
    toy = TablePolicy()
    total = toy.total(toy.table, toy.values)
    gradients = torch.autograd.grad(total, [toy.table, toy.values])
    step = 1e-6
    for which, gradient in enumerate(gradients):
        for index in itertools.product(*(range(n) for n in gradient.shape)):
            around = []
            for sign in (1, -1):
                parameters = [toy.table.detach().clone(), toy.values.detach().clone()]
                parameters[which][index] += sign * step
                around.append(toy.total(*parameters).item())
            slope = (around[0] - around[1]) / (2 * step)
            assert gradient[index].item() == pytest.approx(slope, rel=1e-6, abs=1e-8)
    assert gradients[0].abs().min() > 1e-3


def test_the_kl_term_counts_once():
    # Trap 17: its gradient grows in proportion to its coefficient, from what it is without a reference.
    toy = TablePolicy()
    none, once, twice = (
        torch.autograd.grad(toy.total(toy.table, toy.values, kl_coef=c), toy.table)[0] for c in (0, 1, 2)
    )
    logprobs, _, _ = toy.forward(toy.table, toy.values, slice(None))
    by_hand = torch.autograd.grad((logprobs * ((logprobs - toy.ref).detach() * toy.mask)).sum() / 22, toy.table)[0]
    torch.testing.assert_close(once - none, by_hand, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(twice - none, 2 * by_hand, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["policy", "value", "kl", "entropy"])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_ragged_micro_batches_add_up_to_one_batch(name, size):
    # Trap 12.
    toy = TablePolicy()
    num_tokens = int(toy.mask.sum())
    leaf = toy.values if name == "value" else toy.table
    whole, whole_metrics = toy.losses(toy.table, toy.values, slice(None), num_tokens)[name]
    expected = torch.autograd.grad(whole, leaf)[0]

    parts = [slice(i, i + size) for i in range(0, 8, size)]
    added, mean_of_means, metrics = torch.zeros_like(leaf), torch.zeros_like(leaf), []
    for rows in parts:
        loss, of_part = toy.losses(toy.table, toy.values, rows, num_tokens)[name]
        added += torch.autograd.grad(loss, leaf)[0]
        metrics.append(of_part)
        own_mean, _ = toy.losses(toy.table, toy.values, rows, int(toy.mask[rows].sum()))[name]
        mean_of_means += torch.autograd.grad(own_mean, leaf)[0] / len(parts)

    torch.testing.assert_close(added, expected, rtol=1e-12, atol=1e-14)
    assert (mean_of_means - expected).abs().max() > 1e-3, "the control must differ, or this test shows nothing"
    for key, total in whole_metrics.items():
        combine = max if key.endswith("_max") else sum
        torch.testing.assert_close(combine(m[key] for m in metrics), total, rtol=1e-12, atol=1e-12)


def test_gradients_flow_to_what_is_trained_and_to_nothing_else():
    mask = live([2], 2)
    trained, *constants = (f64([[0.1 * i, -0.2]], requires_grad=True) for i in range(4))
    policy, m1 = policy_loss(trained, constants[0], constants[1], mask, clip_eps=0.2, denominator=2)
    value, m2 = value_loss(trained, constants[0], constants[2], mask, clip_eps=0.2, denominator=2)
    kl, m3 = kl_loss(trained, constants[1], mask, denominator=2)
    bonus, m4 = entropy_bonus(trained, mask, denominator=2)
    (policy + value + kl + bonus).backward()
    assert trained.grad is not None
    assert all(c.grad is None for c in constants)
    assert not any(t.requires_grad for metrics in (m1, m2, m3, m4) for t in metrics.values())


def test_the_denominator_may_be_a_tensor():
    mask = live([2], 2)
    for denominator in (4, 4.0, torch.tensor(4)):
        loss, _ = entropy_bonus(f64([[1, 2]]), mask, denominator=denominator)
        assert loss.item() == 0.75
