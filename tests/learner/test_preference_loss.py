"""The loss over rankings against slow loops as the papers write it, and what must follow from it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.preference_loss import Pairs, pairs_of, preference_loss


def oracle(scores, rankings, margins, margin_coef, centring_coef):
    """InstructGPT's eq. 1 for each ranking, with Llama 2's margin and the squared sum of arXiv:2312.09244."""
    total = 0.0
    for ranking, margin in zip(rankings, margins, strict=True):
        k, own = len(ranking), 0.0
        for i in range(k):
            for j in range(i + 1, k):
                better, worse = scores[ranking[i]], scores[ranking[j]]
                sigmoid = 1 / (1 + math.exp(-(better - worse - margin_coef * margin)))
                own += -math.log(sigmoid) + centring_coef * (better + worse) ** 2
        total += own / math.comb(k, 2)
    return total


RANKINGS = [np.array(r) for r in ([0, 1], [4, 2, 3], [5, 6, 7, 8, 9], [3, 0])]
MARGINS = np.array([0.5, 0.0, 0.25, 2.0], dtype=np.float32)


def scores(seed=0, num=10):
    return torch.from_numpy(np.random.default_rng(seed).normal(0, 2, num)).requires_grad_()


def loss(values, rankings=RANKINGS, margins=MARGINS, margin_coef=1.0, centring_coef=0.0):
    return preference_loss(values, pairs_of(rankings, margins), margin_coef=margin_coef, centring_coef=centring_coef)


@pytest.mark.parametrize(
    ("margin_coef", "centring_coef"), [(0.0, 0.0), (1.0, 0.0), (0.5, 0.0), (0.0, 0.01), (2.0, 0.3)]
)
@pytest.mark.parametrize("seed", [0, 1])
def test_the_loss_is_that_of_a_loop_over_pairs(margin_coef, centring_coef, seed):
    values = scores(seed)
    expected = oracle(values.tolist(), RANKINGS, MARGINS, margin_coef, centring_coef)
    found = loss(values, margin_coef=margin_coef, centring_coef=centring_coef)
    assert found.item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("centring_coef", [0.0, 0.1])
def test_the_gradient_is_that_of_finite_differences(centring_coef):
    pairs = pairs_of(RANKINGS, MARGINS)
    assert torch.autograd.gradcheck(
        lambda x: preference_loss(x, pairs, margin_coef=1.0, centring_coef=centring_coef), (scores(),)
    )


def test_a_ranking_is_the_mean_over_its_pairs():
    values, ranking = scores(), [3, 1, 4, 0]
    alone = [
        loss(values, [np.array([ranking[i], ranking[j]])], np.zeros(1, dtype=np.float32)).item()
        for i in range(4)
        for j in range(i + 1, 4)
    ]
    assert len(alone) == 6
    assert loss(values, [np.array(ranking)], np.zeros(1, dtype=np.float32)).item() == pytest.approx(np.mean(alone))


def test_two_undecided_texts_cost_one_bit_of_surprise():
    assert loss(torch.zeros(2), [np.array([0, 1])], np.zeros(1, dtype=np.float32)).item() == pytest.approx(math.log(2))


def test_the_gradient_of_a_pair_is_the_chance_of_being_wrong():
    """d/dr_c of -log sigmoid(r_c - r_r) is sigmoid(r_c - r_r) - 1."""
    values = torch.tensor([0.7, -0.4], dtype=torch.float64, requires_grad=True)
    loss(values, [np.array([0, 1])], np.zeros(1, dtype=np.float32)).backward()
    wrong = 1 - 1 / (1 + math.exp(-1.1))
    assert values.grad.tolist() == pytest.approx([-wrong, wrong])


@given(shift=st.floats(-50, 50))
def test_without_centring_a_shift_of_all_scores_changes_nothing(shift):
    values = scores().detach()
    assert loss(values + shift).item() == pytest.approx(loss(values).item(), rel=1e-9)


def test_centring_draws_the_sum_of_a_pair_to_zero():
    values = torch.tensor([1000.0, 999.0], dtype=torch.float64, requires_grad=True)
    pair = [np.array([0, 1])]
    loss(values, pair, np.zeros(1, dtype=np.float32), centring_coef=0.01).backward()
    assert (values.grad > 0).all()  # both are drawn down, though the first is preferred


def test_a_margin_asks_for_as_much_more_of_a_difference():
    """With a margin, a pair costs what it costs without one when its scores are that much nearer."""
    pair = [np.array([0, 1])]
    with_margin = loss(torch.tensor([3.0, 1.0]), pair, np.array([0.75], dtype=np.float32), margin_coef=2.0)
    nearer = loss(torch.tensor([1.5, 1.0]), pair, np.zeros(1, dtype=np.float32))
    assert with_margin.item() == pytest.approx(nearer.item())


def test_scores_far_apart_stay_finite():
    values = torch.tensor([-1e4, 1e4], requires_grad=True)
    found = loss(values, [np.array([0, 1])], np.zeros(1, dtype=np.float32))
    found.backward()
    assert found.item() == pytest.approx(2e4)
    assert torch.isfinite(values.grad).all()


def test_every_pair_of_a_ranking_is_there_and_its_weights_sum_to_one():
    pairs = pairs_of(RANKINGS, MARGINS)
    assert isinstance(pairs, Pairs)
    assert list(zip(pairs.better[1:4], pairs.worse[1:4], strict=True)) == [(4, 2), (4, 3), (2, 3)]
    assert pairs.weights.sum() == pytest.approx(len(RANKINGS))
    assert pairs.margins.tolist() == [0.5] + [0.0] * 3 + [0.25] * 10 + [2.0]
