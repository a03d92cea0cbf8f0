"""What a trial on a model may find: whether a shortcut gives the logits that the model itself gives.

Used by `frozen_trunk.py` and `packed_rows.py`, which take a model's own way where the trial fails.
"""

import torch

REFUSED = (AttributeError, IndexError, RuntimeError, TypeError, ValueError)
"""What architectures raise that the shortcut does not fit, as layers that read each other's fields."""


def tolerance(dtype: torch.dtype) -> float:
    """Share of the largest logit by which rounding may move another; products of GPUs may round float32 to 10 bits."""
    return 1e-3 if dtype in (torch.float32, torch.float64) else 1e-2
