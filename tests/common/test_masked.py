"""Masked statistics: padding changes nothing, one live slot is enough."""

import math

import pytest
import torch

from common.masked import masked_mean, masked_sum, masked_var, whiten

NAN = float("nan")


@pytest.fixture
def batch():
    mask = torch.arange(6)[None, :] < torch.tensor([6, 1, 3, 4])[:, None]
    values = 3 + 2 * torch.randn(4, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return values, mask


def test_sum_mean_and_variance_of_three_values_by_hand():
    values = torch.tensor([[1.0, 2.0, NAN], [6.0, NAN, NAN]])
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert masked_sum(values, mask).item() == 9
    assert masked_mean(values, mask).item() == 3
    assert masked_var(values, mask).item() == pytest.approx((4 + 1 + 9) / 3)


@pytest.mark.parametrize("garbage", [NAN, math.inf, 1e9])
def test_what_dead_slots_hold_changes_no_statistic(batch, garbage):
    values, mask = batch
    dirty = torch.where(mask, values, garbage)
    for statistic in (masked_sum, masked_mean, masked_var, whiten):
        assert torch.equal(statistic(dirty, mask), statistic(torch.where(mask, values, 0.0), mask))


def test_whitened_live_slots_have_mean_0_and_variance_1_and_dead_slots_are_0(batch):
    # Trap 11: a mean over padding too would leave the live slots off centre.
    values, mask = batch
    white = whiten(torch.where(mask, values, 0.0), mask)
    assert white[mask].mean().item() == pytest.approx(0, abs=1e-12)
    assert white[mask].var(correction=0).item() == pytest.approx(1, rel=1e-6)
    assert (white[~mask] == 0).all()


def test_extra_padding_does_not_change_whitened_values(batch):
    # Trap 11.
    values, mask = batch
    pad = torch.nn.functional.pad
    wide = whiten(pad(values, (0, 9), value=50.0), pad(mask, (0, 9)))
    torch.testing.assert_close(wide[:, :6], whiten(values, mask), rtol=1e-12, atol=1e-12)
    assert (wide[:, 6:] == 0).all()


def test_one_live_slot_is_whitened_to_zero_and_none_gives_zeros():
    # Trap 11: Bessel's correction would divide by 0 here.
    values = torch.tensor([[4.0, NAN]])
    assert whiten(values, torch.tensor([[True, False]])).tolist() == [[0, 0]]
    nothing = torch.tensor([[False, False]])
    assert whiten(values, nothing).tolist() == [[0, 0]]
    assert masked_mean(values, nothing).item() == 0


def test_equal_values_are_whitened_to_zeros():
    assert whiten(torch.full((3, 4), 2.0), torch.ones(3, 4, dtype=torch.bool)).abs().max().item() == 0


def test_nan_in_a_live_slot_shows_in_every_statistic(batch):
    values, mask = batch
    values[0, 2] = NAN
    for statistic in (masked_sum, masked_mean, masked_var):
        assert statistic(values, mask).isnan()
    assert whiten(values, mask)[mask].isnan().all()


def test_gradients_of_sum_and_mean_reach_live_slots_only():
    values = torch.tensor([[1.0, NAN], [2.0, 3.0]], requires_grad=True)
    mask = torch.tensor([[True, False], [True, True]])
    assert torch.autograd.grad(masked_sum(values, mask), values)[0].tolist() == [[1, 0], [1, 1]]
    third = pytest.approx(1 / 3)
    assert torch.autograd.grad(masked_mean(values, mask), values)[0].tolist() == [[third, 0], [third, third]]
