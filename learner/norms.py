"""The length of all gradients together. Pure; called by `ppo.py`."""

from collections.abc import Sequence

import torch
from torch import Tensor


def total_norm(tensors: Sequence[Tensor]) -> Tensor:
    """[] 2-norm of all numbers of all tensors; NaN or infinite where one of them, or its square, is.

    On a CPU by dot products of float32 tensors with themselves, added up in float64: they use all threads, where
    torch's own norm uses one, and lose less to rounding.

    Args:
        tensors: of any shapes; none: 0.
    """
    if not all(t.device.type == "cpu" and t.dtype == torch.float32 and t.is_contiguous() for t in tensors):
        return torch.nn.utils.get_total_norm(tensors)
    squares = [torch.dot(flat, flat) for flat in (t.reshape(-1) for t in tensors)]
    return torch.stack(squares).double().sum().sqrt() if squares else torch.zeros(())
