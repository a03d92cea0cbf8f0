"""Rewards and advantages by hand, and the traps of where the score goes, who is truncated and what padding leaks."""

import math

import pytest
import torch

from learner.advantages import explained_variance, gae, shaped_scores, token_rewards

NAN = float("nan")


def f64(rows):
    return torch.tensor(rows, dtype=torch.float64)


def live(lengths, width):
    return torch.arange(width)[None, :] < torch.tensor(lengths)[:, None]


def test_gae_of_three_tokens_by_hand():
    # gamma = 0.5, lambda = 0.5, V = (1, 2, 4), r = (0, 0, 8), ended:
    # delta = (0 + 0.5*2 - 1, 0 + 0.5*4 - 2, 8 + 0 - 4) = (0, 0, 4);  A = (0.25*0.25*4, 0.25*4, 4)
    advantages, returns = gae(
        f64([[0, 0, 8]]), f64([[1, 2, 4]]), live([3], 3), gamma=0.5, gae_lambda=0.5, bootstrap_values=f64([0])
    )
    assert advantages.tolist() == [[0.25, 1.0, 4.0]]
    assert returns.tolist() == [[1.25, 3.0, 8.0]]


def test_lambda_zero_gives_the_one_step_error():
    advantages, _ = gae(
        f64([[1, 2, 3]]), f64([[4, 5, 6]]), live([3], 3), gamma=0.5, gae_lambda=0.0, bootstrap_values=f64([10])
    )
    assert advantages.tolist() == [[1 + 2.5 - 4, 2 + 3 - 5, 3 + 5 - 6]]


def test_bootstrap_reaches_every_token_of_a_truncated_row_and_none_of_a_finished_one():
    # Trap 8: both rows fill the batch width, so a width cannot tell them apart; the flag (a zero bootstrap) does.
    rewards, values = f64([[0, 0, 1], [0, 0, 1]]), f64([[2, 2, 2], [2, 2, 2]])
    advantages, _ = gae(rewards, values, live([3, 3], 3), gamma=0.5, gae_lambda=1.0, bootstrap_values=f64([0, 8]))
    finished, truncated = advantages.tolist()
    assert finished == [0.25 - 2, 0.5 - 2, 1 - 2]
    assert truncated == [0.25 + 1 - 2, 0.5 + 2 - 2, 1 + 4 - 2]


def test_the_longest_finished_row_does_not_depend_on_how_wide_its_batch_is():
    # Trap 8, AReaL PR#1637: a row that fills the width is not thereby truncated.
    numbers = {"gamma": 0.9, "gae_lambda": 0.8}
    rewards, values = f64([[0.1, 0.2, 3.0]]), f64([[0.5, 0.7, 0.9]])
    alone, _ = gae(rewards, values, live([3], 3), bootstrap_values=f64([0]), **numbers)
    pad = torch.nn.functional.pad
    rows = torch.cat([pad(rewards, (0, 2)), torch.ones(1, 5)]), torch.cat([pad(values, (0, 2)), torch.ones(1, 5)])
    beside_longer, _ = gae(*rows, live([3, 5], 5), bootstrap_values=f64([0, 4]), **numbers)
    assert torch.equal(beside_longer[0, :3], alone[0])


@pytest.mark.parametrize("garbage", [100.0, NAN, math.inf])
def test_dead_slots_change_no_advantage_and_yield_zero(garbage):
    # Trap 9.
    mask = live([3, 1, 2], 4)
    rewards, values = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bootstrap = f64([1.0, 0.0, 2.0])
    numbers = {"gamma": 0.9, "gae_lambda": 0.7, "bootstrap_values": bootstrap}
    clean = gae(torch.where(mask, rewards, 0), torch.where(mask, values, 0), mask, **numbers)
    dirty = gae(torch.where(mask, rewards, garbage), torch.where(mask, values, garbage), mask, **numbers)
    for a, b in zip(clean, dirty, strict=True):
        assert torch.equal(a, b)
        assert (b[~mask] == 0).all()


def test_nan_in_a_live_slot_shows_in_the_advantages():
    rewards, values = torch.ones(1, 3), torch.tensor([[0.0, 0.0, NAN]])
    advantages, _ = gae(rewards, values, live([3], 3), gamma=1.0, gae_lambda=1.0, bootstrap_values=torch.zeros(1))
    assert advantages.isnan().all()


def test_rewards_of_three_tokens_by_hand():
    rewards = token_rewards(
        f64([10]),
        live([3], 4),
        kl_coef=0.5,
        logprobs=f64([[-1, -2, -3, NAN]]),
        ref_logprobs=f64([[-2, -2, -1, NAN]]),
    )
    assert rewards.tolist() == [[-0.5, 0.0, 1.0 + 10.0, 0.0]]


def test_score_lands_on_the_last_response_token_of_finished_truncated_and_one_token_rows():
    # Trap 6: a finished row's EOS is live and last; a truncated row fills the width; a row may be one token long.
    rewards = token_rewards(f64([1, 2, 3]), live([3, 4, 1], 4), kl_coef=0.0, logprobs=None, ref_logprobs=None)
    assert rewards.tolist() == [[0, 0, 1, 0], [0, 0, 0, 2], [3, 0, 0, 0]]


def test_padding_on_either_side_or_more_of_it_leaves_the_score_on_the_last_token():
    mask = torch.tensor([[False, True, True, False, False], [True, False, True, False, False]])
    rewards = token_rewards(f64([1, 2]), mask, kl_coef=0.0, logprobs=None, ref_logprobs=None)
    assert rewards.tolist() == [[0, 0, 1, 0, 0], [0, 0, 2, 0, 0]]


def test_zero_kl_coef_equals_a_run_without_reference():
    # Trap 17: nothing of the reference may be left when its weight is 0.
    scores, mask = f64([1, -1]), live([2, 3], 3)
    without = token_rewards(scores, mask, kl_coef=0.0, logprobs=None, ref_logprobs=None)
    unread = token_rewards(scores, mask, kl_coef=0.0, logprobs=f64([[NAN] * 3] * 2), ref_logprobs=None)
    assert torch.equal(without, unread)


def test_a_penalty_without_reference_is_refused():
    with pytest.raises(ValueError, match=r"kl_coef=0\.1 needs logprobs and ref_logprobs"):
        token_rewards(f64([1]), live([1], 1), kl_coef=0.1, logprobs=f64([[0]]), ref_logprobs=None)


def test_nan_score_or_live_logprob_shows_in_the_rewards():
    mask, zeros = live([1, 2], 2), torch.zeros(2, 2)
    scores = torch.tensor([NAN, 1.0])
    assert token_rewards(scores, mask, kl_coef=0.0, logprobs=None, ref_logprobs=None)[0, 0].isnan()
    broken = torch.tensor([[0.0, 0.0], [NAN, 0.0]])
    rewards = token_rewards(torch.ones(2), mask, kl_coef=0.1, logprobs=broken, ref_logprobs=zeros)
    assert rewards.isnan().tolist() == [[False, False], [True, False]]


def test_scores_are_scaled_then_clipped_then_charged_for_a_missing_eos():
    shaped = shaped_scores(
        f64([1, 4, -4, 4]), torch.tensor([False, False, False, True]), scale=0.5, clip=1.0, missing_eos_penalty=3.0
    )
    assert shaped.tolist() == [0.5, 1.0, -1.0, -2.0]


def test_scores_without_clip_keep_their_size_and_nan_survives_a_clip():
    never = torch.tensor([False, False])
    assert shaped_scores(f64([9, -9]), never, scale=2.0, clip=None, missing_eos_penalty=1.0).tolist() == [18, -18]
    assert shaped_scores(f64([NAN, 0]), never, scale=1.0, clip=1.0, missing_eos_penalty=0.0)[0].isnan()


def test_explained_variance_is_one_for_a_prophet_and_zero_for_a_constant():
    mask, returns = live([3, 2], 3), f64([[1, 2, 3], [4, 5, NAN]])
    assert explained_variance(returns, returns, mask).item() == 1.0
    assert explained_variance(torch.full_like(returns, 7.0), returns, mask).item() == pytest.approx(0.0)
    assert explained_variance(-returns, returns, mask).item() == pytest.approx(-3.0)


def test_no_result_carries_gradients():
    values = torch.ones(1, 2, requires_grad=True)
    advantages, returns = gae(values, values, live([2], 2), gamma=1.0, gae_lambda=1.0, bootstrap_values=torch.zeros(1))
    rewards = token_rewards(values[0, :1], live([2], 2), kl_coef=1.0, logprobs=values, ref_logprobs=values)
    assert not any(t.requires_grad for t in (advantages, returns, rewards))
