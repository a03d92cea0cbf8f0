"""When an update has moved the policy far enough, so that the rest of its minibatches is left out.

The ratio's clip bounds what a single token gains; it does not bound how far the policy moves (arXiv:2005.12729). What
does is looking: each minibatch's forward pass tells the KL to the policy that sampled, before its step is taken. Called
by `ppo.py`.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from learner.tally import Tally


def went_too_far(seen: Tally, limit: float | None, *, reduce: Callable[[Tensor], Tensor], device: torch.device) -> bool:
    """Whether the KL of a minibatch is above the limit: per live token, by k3, over all processes.

    A KL that is not a number is not: that step is left out for its loss. Not to be asked before an update's first
    step, where both policies are one and all that is seen is rounding.

    Args:
        seen: what this process saw of the minibatch.
        limit: `ppo.early_stop_kl`, nats per token; None: never.
        reduce: gives the sum over all processes.
        device: of the sum.
    """
    if limit is None:
        return False
    mine = torch.tensor([seen.total("approx_kl_k3_sum"), float(seen.tokens)], device=device)
    kl, tokens = reduce(mine).tolist()
    return bool(kl / max(1.0, tokens) > limit)
