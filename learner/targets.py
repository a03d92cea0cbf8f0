"""What the epochs of one update learn from: rewards, advantages and returns, and what is measured on the way.

Pure: called once per update by `ppo.py`, after its pass for old logprobs and values. The maths is in advantages.py.

Legend: B sequences of an update, R response slots.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from common.masked import masked_mean, masked_var, whiten
from common.modeling import PolicyOutput
from common.ppo_config import PPOConfig
from learner.advantages import (
    explained_variance,
    gae,
    group_norm,
    response_returns,
    rloo,
    token_rewards,
    zero_std_share,
)
from learner.batch import Batch
from learner.kl import k1, k2, k3, kl_seq_sum, kl_token_mean

Measured = dict[str, float]


@dataclass(frozen=True, slots=True)
class Targets:
    """What the epochs of one update learn from: constants, [B, R] float32."""

    old_logprobs: Tensor
    old_values: Tensor
    ref_logprobs: Tensor | None
    advantages: Tensor
    returns: Tensor
    """Targets of the value head; zeros where there is none."""
    importance: Tensor | None = None
    """How much each token counts, where samples may be of older weights; see off_policy.py."""

    def rows(self, index: Tensor, slots: int) -> "Targets":
        """The chosen rows and the first `slots` columns."""
        ref, importance = (
            None if part is None else part[index, :slots] for part in (self.ref_logprobs, self.importance)
        )
        parts = (self.old_logprobs, self.old_values, self.advantages, self.returns)
        logprobs, values, advantages, returns = (part[index, :slots] for part in parts)
        return Targets(logprobs, values, ref, advantages, returns, importance)


@torch.no_grad()
def build_targets(
    batch: Batch,
    old: PolicyOutput,
    *,
    scores: Tensor,
    ref_logprobs: Tensor | None,
    kl_coef: float,
    config: PPOConfig,
) -> tuple[Targets, Measured]:
    """Advantages of a batch, and the metrics of the report that follow from it.

    Args:
        batch: rows of one prompt stand together, where there are several.
        old: of the policy before the update.
        scores: [B] shaped.
        ref_logprobs: [B, R] of the frozen reference; None where nobody computes them.
        kl_coef: weight of the KL penalty in the reward.
        config: the PPO stage.
    """
    mask = batch.response_mask
    rewards = token_rewards(scores, mask, kl_coef=kl_coef, logprobs=old.logprobs, ref_logprobs=ref_logprobs)
    if config.uses_value_head:
        advantages, returns, measured = _by_values(batch, old, rewards, config)
    else:
        advantages, measured = _by_groups(rewards, mask, config)
        returns = torch.zeros_like(rewards)
    measured |= {
        "kl_coef": kl_coef,
        "advantage_std": float(masked_var(advantages, mask).sqrt()),
    }
    if config.max_staleness == 0:  # else off_policy.py says it, of the samples by the same weights
        measured["logprob_gap_max"] = float(_live_max((old.logprobs - batch.behaviour_logprobs).abs(), mask))
    if config.samples_per_prompt > 1:
        measured["zero_std_group_share"] = float(zero_std_share(scores, config.samples_per_prompt))
    if ref_logprobs is not None:
        measured |= _kl_measures(old.logprobs - ref_logprobs, mask)
    if config.whitening == "batch":
        advantages = whiten(advantages, mask)
    return Targets(old.logprobs, old.values, ref_logprobs, advantages, returns), measured


def _by_values(batch: Batch, old: PolicyOutput, rewards: Tensor, config: PPOConfig) -> tuple[Tensor, Tensor, Measured]:
    mask = batch.response_mask
    goes_on = batch.is_truncated & config.bootstrap_truncated
    advantages, returns = gae(
        rewards,
        old.values,
        mask,
        gamma=config.gamma,
        gae_lambda=config.gae_lambda,
        bootstrap_values=torch.where(goes_on, old.last_values, 0.0),
    )
    explained = float(explained_variance(old.values, returns, mask))
    return advantages, returns, {"explained_variance": explained, "return_mean": float(masked_mean(returns, mask))}


def _by_groups(rewards: Tensor, mask: Tensor, config: PPOConfig) -> tuple[Tensor, Measured]:
    """One advantage per response, the same at each of its tokens."""
    returns = response_returns(rewards, mask)
    compare = rloo if config.advantage == "rloo" else group_norm
    advantages = torch.where(mask, compare(returns, config.samples_per_prompt)[:, None], 0.0)
    return advantages, {"return_mean": float(returns.mean())}


def _kl_measures(log_ratio: Tensor, mask: Tensor) -> Measured:
    """KL to the reference in the units and by the estimators of docs/runs.md."""
    return {
        "kl_seq_sum": float(kl_seq_sum(k1(log_ratio), mask)),
        "kl_token_mean": float(kl_token_mean(k1(log_ratio), mask)),
        "kl_k2_token_mean": float(kl_token_mean(k2(log_ratio), mask)),
        "kl_k3_token_mean": float(kl_token_mean(k3(log_ratio), mask)),
    }


def _live_max(values: Tensor, mask: Tensor) -> Tensor:
    return torch.where(mask, values, 0.0).max()
