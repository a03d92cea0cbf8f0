"""Rewards and GAE against the papers' sums, over ragged batches with garbage at dead slots."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.advantages import explained_variance, gae, group_norm, response_returns, rloo, token_rewards

lengths = st.lists(st.integers(1, 9), min_size=1, max_size=5)
seeds = st.integers(0, 2**31)
fractions = st.sampled_from([0.0, 0.3, 0.95, 1.0])
close = {"rtol": 1e-10, "atol": 1e-10}


def f64(rows):
    return torch.tensor(rows, dtype=torch.float64)


@settings(max_examples=100, deadline=None)
@given(lengths=lengths, seed=seeds, kl_coef=st.sampled_from([0.0, 0.1, 2.0]))
def test_rewards_are_those_of_the_paper(oracle, ragged, lengths, seed, kl_coef):
    mask, (logprobs, ref_logprobs) = ragged(lengths, seed, 2)
    scores = torch.randn(len(lengths), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    rewards = token_rewards(scores, mask, kl_coef=kl_coef, logprobs=logprobs, ref_logprobs=ref_logprobs)
    expected = [
        oracle.rewards(s, lp, ref, live, kl_coef)
        for s, lp, ref, live in zip(
            scores.tolist(), logprobs.tolist(), ref_logprobs.tolist(), mask.tolist(), strict=True
        )
    ]
    torch.testing.assert_close(rewards, f64(expected), **close)


@settings(max_examples=150, deadline=None)
@given(lengths=lengths, seed=seeds, gamma=st.sampled_from([0.5, 0.99, 1.0]), lam=fractions, data=st.data())
def test_advantages_are_the_papers_sum_of_discounted_errors(oracle, ragged, lengths, seed, gamma, lam, data):
    mask, (rewards, values) = ragged(lengths, seed, 2)
    is_truncated = f64(data.draw(st.lists(st.sampled_from([0.0, 1.0]), min_size=len(lengths), max_size=len(lengths))))
    bootstrap = is_truncated * torch.linspace(-2, 3, len(lengths), dtype=torch.float64)
    advantages, returns = gae(rewards, values, mask, gamma=gamma, gae_lambda=lam, bootstrap_values=bootstrap)
    rows = list(zip(rewards.tolist(), values.tolist(), mask.tolist(), bootstrap.tolist(), strict=True))
    expected = f64([oracle.advantages(r, v, live, gamma, lam, b) for r, v, live, b in rows])
    torch.testing.assert_close(advantages, expected, **close)
    torch.testing.assert_close(returns, expected + torch.where(mask, values, 0.0), **close)


@settings(max_examples=100, deadline=None)
@given(lengths=lengths, seed=seeds, gamma=st.sampled_from([0.5, 0.99, 1.0]), bootstrap=st.floats(-3, 3))
def test_lambda_one_gives_the_discounted_return_minus_the_value(oracle, ragged, lengths, seed, gamma, bootstrap):
    mask, (rewards, values) = ragged(lengths, seed, 2)
    after = torch.full((len(lengths),), bootstrap, dtype=torch.float64)
    advantages, returns = gae(rewards, values, mask, gamma=gamma, gae_lambda=1.0, bootstrap_values=after)
    expected = f64(
        [
            oracle.discounted_returns(r, live, gamma, bootstrap)
            for r, live in zip(rewards.tolist(), mask.tolist(), strict=True)
        ]
    )
    torch.testing.assert_close(returns, expected, **close)
    torch.testing.assert_close(advantages, torch.where(mask, expected - values, 0.0), **close)


@settings(max_examples=50, deadline=None)
@given(lengths=lengths, seed=seeds, lam=fractions, shift=st.integers(1, 4))
def test_neither_more_padding_nor_left_padding_changes_an_advantage(ragged, lengths, seed, lam, shift):
    mask, (rewards, values) = ragged(lengths, seed, 2, extra=0)
    bootstrap = torch.ones(len(lengths), dtype=torch.float64)
    numbers = {"gamma": 0.9, "gae_lambda": lam, "bootstrap_values": bootstrap}
    advantages, returns = gae(rewards, values, mask, **numbers)
    for left, right in ((0, shift), (shift, 0), (shift, 2)):
        nan = torch.nn.functional.pad
        wide = gae(
            nan(rewards, (left, right), value=float("nan")),
            nan(values, (left, right), value=100.0),
            nan(mask, (left, right), value=False),
            **numbers,
        )
        assert torch.equal(wide[0], nan(advantages, (left, right)))
        assert torch.equal(wide[1], nan(returns, (left, right)))


@settings(max_examples=50, deadline=None)
@given(lengths=st.lists(st.integers(2, 6), min_size=1, max_size=4), seed=seeds)
def test_explained_variance_is_that_of_the_live_tokens(oracle, ragged, lengths, seed):
    mask, (values, returns) = ragged(lengths, seed, 2)
    v, r = values[mask].tolist(), returns[mask].tolist()
    expected = 1 - oracle.variance([b - a for a, b in zip(v, r, strict=True)]) / oracle.variance(r)
    assert explained_variance(values, returns, mask).item() == pytest.approx(expected, rel=1e-9)


# --- groups

group_shapes = st.tuples(st.integers(1, 4), st.integers(2, 6))


@settings(max_examples=100, deadline=None)
@given(lengths=lengths, seed=seeds, kl_coef=st.sampled_from([0.0, 0.1, 2.0]))
def test_a_return_is_the_score_less_the_whole_kl_of_the_response(oracle, ragged, lengths, seed, kl_coef):
    mask, (logprobs, ref_logprobs) = ragged(lengths, seed, 2)
    scores = torch.linspace(-1, 2, len(lengths), dtype=torch.float64)
    rewards = token_rewards(scores, mask, kl_coef=kl_coef, logprobs=logprobs, ref_logprobs=ref_logprobs)
    rows = zip(scores.tolist(), logprobs.tolist(), ref_logprobs.tolist(), mask.tolist(), strict=True)
    expected = [oracle.response_return(*row, kl_coef) for row in rows]
    torch.testing.assert_close(response_returns(rewards, mask), f64(expected), **close)


@settings(max_examples=100, deadline=None)
@given(shape=group_shapes, seed=seeds, offset=st.floats(-50, 50))
def test_group_advantages_are_those_of_the_papers(oracle, shape, seed, offset):
    returns = offset + torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    samples = shape[1]
    left_out = [x for group in returns.tolist() for x in oracle.leave_one_out(group)]
    scaled = [x for group in returns.tolist() for x in oracle.normalised(group, 1e-4)]
    torch.testing.assert_close(rloo(returns.flatten(), samples), f64(left_out), rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(group_norm(returns.flatten(), samples), f64(scaled), rtol=1e-9, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(shape=group_shapes, seed=seeds, shift=st.floats(-20, 20))
def test_what_all_samples_of_a_prompt_have_in_common_changes_no_advantage(shape, seed, shift):
    returns = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    moved = returns.clone()
    moved[0] += shift
    for compare in (rloo, group_norm):
        torch.testing.assert_close(compare(moved.flatten(), shape[1]), compare(returns.flatten(), shape[1]), **close)


@settings(max_examples=50, deadline=None)
@given(shape=group_shapes, seed=seeds)
def test_rloo_is_the_centred_return_times_k_over_k_minus_one(shape, seed):
    returns = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    centred = (returns - returns.mean(1, keepdim=True)) * shape[1] / (shape[1] - 1)
    torch.testing.assert_close(rloo(returns.flatten(), shape[1]), centred.flatten(), **close)
