"""The length of gradients against numpy in float64."""

import math

import numpy as np
import pytest
import torch

from learner.norms import total_norm


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
