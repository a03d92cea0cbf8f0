"""The losses of PPO, as sums over live tokens divided by a denominator that the caller gives.

The denominator is the number of live tokens of the WHOLE optimizer step. So the losses of its micro-batches, and of its
processes, add up to the loss of one big batch, and their gradients to its gradient; a mean of means would not.

Pure maths, called by `ppo.py`, which weighs and adds:

    total = policy_loss + value_coef * value_loss + kl_loss_coef * kl_loss - entropy_coef * entropy_bonus

Every function returns (loss, metrics). Metrics are detached scalars and, where the name ends in `_sum` or begins with
`num_`, SUMS over this micro-batch's live tokens: add them up over micro-batches, then divide by the token count.
`_max` ones are combined with max.

Dead slots may hold anything, NaN included: they are replaced before any arithmetic, for 0 * NaN would be NaN in the
backward pass too. A NaN in a live slot makes the loss NaN. Log-ratios are not clamped: beyond 88 nats the ratio
overflows float32, and loss or gradient are not finite.

Legend: B sequences, R response slots.
"""

import torch
from torch import Tensor

from common.masked import masked_sum
from learner.kl import k1, k2, k3

Metrics = dict[str, Tensor]


def _live(values: Tensor, mask: Tensor) -> Tensor:
    """Zeros at dead slots, for the value and for its gradient."""
    return torch.where(mask, values, 0.0)


def policy_loss(
    logprobs: Tensor,
    old_logprobs: Tensor,
    advantages: Tensor,
    mask: Tensor,
    *,
    clip_eps: float,
    clip_eps_high: float | None = None,
    dual_clip: float | None = None,
    importance: Tensor | None = None,
    denominator: Tensor | float,
) -> tuple[Tensor, Metrics]:
    """The clipped surrogate, negated (arXiv:1707.06347, eq. 7): -min(ratio * A, clip(ratio, 1 ± eps) * A).

    With `clip_eps_high` the upper bound is another one (clip-higher, arXiv:2503.14476). With `dual_clip` c and a
    negative advantage it is -max(that minimum, c * A) (arXiv:1912.09729, eq. 5). With `importance` each token's loss
    is weighed by it (decoupled PPO, arXiv:2505.24298, eq. 5; see off_policy.py).

    Args:
        logprobs: [B, R] float, of the policy as it is now; gradients flow.
        old_logprobs: [B, R] float, of the same tokens at the start of the update; a constant.
        advantages: [B, R] float; a constant.
        mask: [B, R] bool, the live tokens.
        clip_eps: beyond 1 ± this a ratio that the advantage already favours gains nothing, and has no gradient.
        clip_eps_high: the same for the upper bound; None: clip_eps.
        dual_clip: above 1; where the advantage is negative, a ratio beyond it costs no more, and has no gradient.
        importance: [B, R] float, weights of the tokens; a constant. None: all count alike.
        denominator: live tokens of the whole optimizer step.

    Returns:
        [] loss, and `num_clipped` (tokens whose gradient the clip took), `approx_kl_k2_sum` and `approx_kl_k3_sum`
        (KL(old || new) in nats, in two estimators), `ratio_max` (over live tokens); with a dual clip also
        `num_dual_clipped`, the tokens whose gradient that one took.
    """
    log_ratio = _live(logprobs, mask) - _live(old_logprobs.detach(), mask)
    ratio = log_ratio.exp()
    advantages = _live(advantages.detach(), mask)
    unclipped = -advantages * ratio
    clipped = -advantages * ratio.clamp(1 - clip_eps, 1 + (clip_eps if clip_eps_high is None else clip_eps_high))
    losses = torch.maximum(unclipped, clipped)
    dual: Metrics = {}
    if dual_clip is not None:
        most = torch.where(advantages < 0, -advantages * dual_clip, torch.inf)
        dual = {"num_dual_clipped": (losses > most).sum()}
        losses = torch.minimum(losses, most)
    if importance is not None:
        losses = losses * _live(importance.detach(), mask)
    loss = masked_sum(losses, mask) / denominator
    old_over_new = -log_ratio.detach()
    metrics = {
        "num_clipped": (clipped > unclipped).sum(),
        "approx_kl_k2_sum": k2(old_over_new).sum(),
        "approx_kl_k3_sum": k3(old_over_new).sum(),
        "ratio_max": _live(ratio.detach(), mask).amax(),
    }
    return loss, metrics | dual


def value_loss(
    values: Tensor,
    old_values: Tensor,
    returns: Tensor,
    mask: Tensor,
    *,
    clip_eps: float,
    denominator: Tensor | float,
) -> tuple[Tensor, Metrics]:
    """Half the squared error of the value head, pessimistic where it moved far (as in OpenAI's baselines ppo2).

    0.5 * max((V - R)^2, (clip(V, V_old ± eps) - R)^2)

    Args:
        values: [B, R] float, as they are now; gradients flow.
        old_values: [B, R] float, at the start of the update; a constant.
        returns: [B, R] float, the targets; a constant.
        mask: [B, R] bool, the live tokens.
        clip_eps: in units of returns; inf: no clipping.
        denominator: live tokens of the whole optimizer step.

    Returns:
        [] loss, and `num_value_clipped` (tokens whose gradient the clip took).
    """
    values = _live(values, mask)
    returns = _live(returns.detach(), mask)
    squares = (values - returns).square()
    old_values = _live(old_values.detach(), mask)
    clipped = (values.clamp(old_values - clip_eps, old_values + clip_eps) - returns).square()
    loss = 0.5 * masked_sum(torch.maximum(squares, clipped), mask) / denominator
    return loss, {"num_value_clipped": (clipped > squares).sum()}


def entropy_bonus(entropy: Tensor, mask: Tensor, *, denominator: Tensor | float) -> tuple[Tensor, Metrics]:
    """Entropy of the token distributions: a gain, to be SUBTRACTED from the total.

    Args:
        entropy: [B, R] float, nats; gradients flow.
        mask: [B, R] bool, the live tokens.
        denominator: live tokens of the whole optimizer step.

    Returns:
        [] bonus, at least 0, and `entropy_sum`.
    """
    total = masked_sum(entropy, mask)
    return total / denominator, {"entropy_sum": total.detach()}


def kl_loss(
    logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor, *, denominator: Tensor | float
) -> tuple[Tensor, Metrics]:
    """KL penalty in the loss, by the estimator k2 (see `learner.kl` for why not k1 or k3).

    Its gradient per token is log_ratio * grad logprob: in expectation over tokens of the current policy, that of
    KL(policy || reference). In later epochs the tokens are those of the old policy, and it is off by as much as the
    ratio is off 1. As a value it is biased; reports use k1.

    Args:
        logprobs: [B, R] float, of the policy as it is now; gradients flow.
        ref_logprobs: [B, R] float, of the frozen reference; a constant.
        mask: [B, R] bool, the live tokens.
        denominator: live tokens of the whole optimizer step.

    Returns:
        [] loss, and `ref_kl_k1_sum` and `ref_kl_k2_sum` in nats.
    """
    log_ratio = _live(logprobs, mask) - _live(ref_logprobs.detach(), mask)
    total = k2(log_ratio).sum()
    return total / denominator, {"ref_kl_k1_sum": k1(log_ratio.detach()).sum(), "ref_kl_k2_sum": total.detach()}
