"""Statistics over the live slots of padded tensors. What the dead slots hold, NaN included, changes nothing."""

import torch
from torch import Tensor


def masked_sum(values: Tensor, mask: Tensor) -> Tensor:
    """Sum over live slots.

    Args:
        values: [...] float; anything at dead slots.
        mask: [...] bool, true at live slots.

    Returns:
        [] float; gradients flow to live slots only.
    """
    return torch.where(mask, values, torch.zeros((), dtype=values.dtype, device=values.device)).sum()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean over live slots; 0 where there are none. Shapes as in `masked_sum`."""
    return masked_sum(values, mask) / mask.sum().clamp(min=1)


def masked_var(values: Tensor, mask: Tensor) -> Tensor:
    """Biased variance over live slots (divided by their number, so one live slot gives 0, not 0/0)."""
    centred = values - masked_mean(values, mask)
    return masked_mean(centred * centred, mask)


def whiten(values: Tensor, mask: Tensor, *, eps: float = 1e-8) -> Tensor:
    """Bring live slots to mean 0 and variance 1.

    Args:
        values: [...] float.
        mask: [...] bool.
        eps: added to the variance, so that equal values give zeros.

    Returns:
        [...] float, 0 at dead slots.
    """
    wide = torch.where(mask, values, 0.0).double()  # in float32 equal values would not give zeros
    scaled = (wide - masked_mean(wide, mask)) * torch.rsqrt(masked_var(wide, mask) + eps)
    return torch.where(mask, scaled, 0.0).to(values.dtype)
