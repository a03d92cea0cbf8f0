"""From one score per response to advantages: rewards, then GAE by a value head, or comparison within a prompt's group.

Pure maths on padded tensors, called by `ppo.py` once per update, before any gradient step. Not here: whitening
(`common.masked.whiten`), the losses (`losses.py`), and who decides that a response was truncated (the worker: it is
`Rollout.finish`, never guessed from a width).

All results are constants of the losses: nothing here carries gradients. Dead slots may hold anything, NaN included;
they change nothing and come back as 0. A NaN in a live slot spreads to the results of its row.

Legend: B sequences, R response slots, K samples of one prompt; rows k * K … k * K + K - 1 are one group.
"""

import torch
from torch import Tensor

from common.masked import masked_var
from learner.kl import k1


@torch.no_grad()
def shaped_scores(
    scores: Tensor, is_truncated: Tensor, *, scale: float, clip: float | None, missing_eos_penalty: float
) -> Tensor:
    """Scale, then clip, then charge the responses that did not end by themselves.

    Args:
        scores: [B] float, as the reward service gave them.
        is_truncated: [B] bool, cut at the length limit.
        scale: factor, applied first.
        clip: scaled scores are cut to ± this; None: never. NaN stays NaN.
        missing_eos_penalty: subtracted last, so that clipping cannot hide it.

    Returns:
        [B] float.
    """
    shaped = scores * scale
    if clip is not None:
        shaped = shaped.clamp(-clip, clip)
    return shaped - missing_eos_penalty * is_truncated


@torch.no_grad()
def token_rewards(
    scores: Tensor, response_mask: Tensor, *, kl_coef: float, logprobs: Tensor | None, ref_logprobs: Tensor | None
) -> Tensor:
    """Reward of each token: minus kl_coef * k1, plus the score at the last live token (arXiv:1909.08593, eq. 2).

    Args:
        scores: [B] float, shaped.
        response_mask: [B, R] bool, true at the response's tokens, its EOS included.
        kl_coef: weight of the penalty; with 0 the logprobs are not read, and may be None.
        logprobs: [B, R] float, of the policy that sampled.
        ref_logprobs: [B, R] float, of the frozen reference.

    Returns:
        [B, R] float, 0 at dead slots; a row without live slots loses its score.

    Raises:
        ValueError: there is a penalty and nothing to compute it from.
    """
    live_from_here = response_mask.flip(1).cumsum(1).flip(1)
    is_last = response_mask & (live_from_here == 1)
    rewards = torch.where(is_last, scores[:, None], 0.0)
    if kl_coef == 0:
        return rewards
    if logprobs is None or ref_logprobs is None:
        raise ValueError(f"kl_coef={kl_coef} needs logprobs and ref_logprobs; give both, or set kl_coef to 0")
    return rewards - torch.where(response_mask, kl_coef * k1(logprobs - ref_logprobs), 0.0)


@torch.no_grad()
def gae(
    rewards: Tensor,
    values: Tensor,
    response_mask: Tensor,
    *,
    gamma: float,
    gae_lambda: float,
    bootstrap_values: Tensor,
) -> tuple[Tensor, Tensor]:
    """Generalised advantage estimation (arXiv:1506.02438, eq. 16), from the last live token backwards.

        delta_t = r_t + gamma * V(s_{t+1}) - V(s_t)        A_t = delta_t + gamma * lambda * A_{t+1}

    A dead slot hands on what the next live one said, so that padding may stand anywhere.

    Args:
        rewards: [B, R] float, from `token_rewards`.
        values: [B, R] float, V(s_t) of the state before token t.
        response_mask: [B, R] bool.
        gamma: discount per token.
        gae_lambda: 0: one-step errors; 1: discounted returns minus values.
        bootstrap_values: [B] float, V of the state after the last live token; 0 where the response ended, and where
            truncation is to count as an end.

    Returns:
        advantages and returns = advantages + values (the targets of the value head), [B, R] float, 0 at dead slots.
    """
    advantages = torch.zeros_like(values)
    next_value = bootstrap_values
    next_advantage = torch.zeros_like(bootstrap_values)
    for t in reversed(range(values.shape[1])):
        is_live = response_mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        next_advantage = torch.where(is_live, delta + gamma * gae_lambda * next_advantage, next_advantage)
        next_value = torch.where(is_live, values[:, t], next_value)
        advantages[:, t] = torch.where(is_live, next_advantage, 0.0)
    returns = torch.where(response_mask, advantages + values, 0.0)
    return advantages, returns


@torch.no_grad()
def response_returns(rewards: Tensor, response_mask: Tensor) -> Tensor:
    """What a whole response earned: score minus kl_coef times the sum of k1, undiscounted.

    This is the R of arXiv:2402.14740: the response is one action, and the KL of its tokens is part of its
    return, so that the baseline of the group covers it too and it counts once.

    Args:
        rewards: [B, R] float, from `token_rewards`.
        response_mask: [B, R] bool.

    Returns:
        [B] float, summed in float64.
    """
    return torch.where(response_mask, rewards, 0.0).double().sum(dim=1).to(rewards.dtype)


@torch.no_grad()
def rloo(returns: Tensor, samples_per_prompt: int) -> Tensor:
    """REINFORCE leave-one-out (RLOO, arXiv:2402.14740): R_i - mean of R_j over the others of the group.

    It is an unbiased baseline, for it does not depend on the response itself.

    Args:
        returns: [B] float, groups in rows that stand together.
        samples_per_prompt: K, at least 2.

    Returns:
        [B] float, one advantage per response.
    """
    groups = returns.double().view(-1, samples_per_prompt)
    others = (groups.sum(dim=1, keepdim=True) - groups) / (samples_per_prompt - 1)
    return (groups - others).flatten().to(returns.dtype)


@torch.no_grad()
def group_norm(returns: Tensor, samples_per_prompt: int, *, eps: float = 1e-4) -> Tensor:
    """GRPO's advantage (arXiv:2402.03300, section 4.1.2): (R_i - mean of the group) / standard deviation of the group.

    Prompts on which all responses do about equally well weigh as much as others: the division takes the size of a
    difference away. The standard deviation is that of a sample (divided by K - 1).

    Args:
        returns: [B] float, groups in rows that stand together.
        samples_per_prompt: K, at least 2.
        eps: added to the standard deviation, so that equal returns give zeros.

    Returns:
        [B] float, one advantage per response.
    """
    groups = returns.double().view(-1, samples_per_prompt)
    centred = groups - groups.mean(dim=1, keepdim=True)
    return (centred / (groups.std(dim=1, keepdim=True) + eps)).flatten().to(returns.dtype)


@torch.no_grad()
def zero_std_share(scores: Tensor, samples_per_prompt: int) -> Tensor:
    """Share of groups whose scores are all equal: such a prompt teaches nothing but its KL.

    Args:
        scores: [B] float, shaped; groups in rows that stand together.
        samples_per_prompt: K.

    Returns:
        [] float, 0 … 1.
    """
    groups = scores.view(-1, samples_per_prompt)
    return (groups == groups[:, :1]).all(dim=1).float().mean()


@torch.no_grad()
def explained_variance(values: Tensor, returns: Tensor, response_mask: Tensor) -> Tensor:
    """1 - Var(returns - values) / Var(returns) over live tokens.

    1: the value head foresees every return; 0: no better than a constant; negative: worse than one.

    Args:
        values: [B, R] float, before the update.
        returns: [B, R] float.
        response_mask: [B, R] bool.

    Returns:
        [] float; not finite where the returns do not vary, for nothing is there to explain.
    """
    return 1 - masked_var(returns - values, response_mask) / masked_var(returns, response_mask)
