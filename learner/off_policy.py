"""Samples of older weights: how far they are from the learner's policy, and by how much each token counts.

Three logprobs of each token are told apart (Hilton et al., arXiv:2110.00641; AReaL, arXiv:2505.24298, section 5.2):

    behaviour   of the weights that sampled it                  corrects what was sampled:  w = min(prox / behav, cap)
    proximal    of the learner, before the update's first step  the clip keeps the update near it:  r = new / prox
    new         of the learner, at each step                    loss = w * clipped surrogate(r)

With behaviour alone, as in plain PPO, the clip would pull the policy back to where it was some updates ago.

Pure, called once per update by `ppo.py`, and only where `max_staleness` is 1 or more.

Legend: B sequences of an update, R response slots.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from common.records import Trajectory
from learner.batch import Batch
from learner.kl import k3
from learner.targets import Measured, Targets

MAX_LOG_WEIGHT = 80.0
"""Nats beyond which a weight would be infinite in float32."""


def decouple(
    targets: Targets, batch: Batch, trajectories: Sequence[Trajectory], *, step: int, cap: float
) -> tuple[Targets, Measured]:
    """Targets with importance weights, and what the report says of them.

    Args:
        targets: of the batch, by the learner as it is.
        batch: the samples.
        trajectories: the same, in the order of its rows.
        step: updates behind the learner's weights.
        cap: of the weights.
    """
    proximal, behaviour, mask = targets.old_logprobs, batch.behaviour_logprobs, batch.response_mask
    ages = torch.tensor([step - t.rollout.identity.step for t in trajectories], device=mask.device)
    weights = importance_weights(proximal, behaviour, mask, cap=cap)
    return replace(targets, importance=weights), staleness_measures(proximal, behaviour, mask, ages=ages, cap=cap)


@torch.no_grad()
def importance_weights(proximal: Tensor, behaviour: Tensor, mask: Tensor, *, cap: float) -> Tensor:
    """[B, R] float32 constants, at most `cap`; 1 at dead slots.

    Args:
        proximal: [B, R] float, logprobs of the learner before the update.
        behaviour: [B, R] float, logprobs of the policy that sampled.
        mask: [B, R] bool, the live tokens.
        cap: cut there, which bounds the variance and biases towards the behaviour policy; inf: never.
    """
    return torch.where(mask, proximal - behaviour, 0.0).clamp(max=MAX_LOG_WEIGHT).exp().clamp(max=cap)


@torch.no_grad()
def staleness_measures(proximal: Tensor, behaviour: Tensor, mask: Tensor, *, ages: Tensor, cap: float) -> Measured:
    """What the report says of a batch's age; means are over live tokens, of the ages over samples.

    `fresh_kl` and `stale_kl` are KL(behaviour || proximal) in nats per token, by k3. Of samples that the present
    weights generated there is none but for rounding: what is seen is how far worker and learner compute apart. Of older
    ones it is how far the policy has moved meanwhile. Each is left out where there are no such samples; so is
    `logprob_gap_max`, the largest difference of the former.

    Args:
        proximal: [B, R] float, logprobs of the learner before the update.
        behaviour: [B, R] float, logprobs of the policy that sampled.
        mask: [B, R] bool, the live tokens.
        ages: [B] int, updates between the weights that generated a sample and those of the learner.
        cap: of the importance weights.
    """
    log_weights = torch.where(mask, proximal - behaviour, 0.0).clamp(-MAX_LOG_WEIGHT, MAX_LOG_WEIGHT)
    weights = log_weights.exp()[mask]
    measures = {
        "staleness_mean": float(ages.float().mean()),
        "staleness_max": float(ages.max()),
        "importance_mean": float(weights.clamp(max=cap).mean()),
        "importance_max": float(weights.max()),
        "importance_truncated_fraction": float((weights > cap).float().mean()),
    }
    kl = k3(-log_weights)
    for name, rows in (("fresh_kl", ages == 0), ("stale_kl", ages > 0)):
        chosen = mask & rows[:, None]
        if chosen.any():
            measures[name] = float(kl[chosen].mean())
            if name == "fresh_kl":
                measures["logprob_gap_max"] = float(log_weights[chosen].abs().max())
    return measures
