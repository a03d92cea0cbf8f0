"""Ragged rows of ids to a rectangle, in one place: padding is on the right, and masks follow from lengths."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from common.records import Ids


def pad_right(rows: Sequence[Ids], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Pad rows on the right.

    Args:
        rows: ids; an empty row becomes all padding.
        pad_id: any id: what is padding follows from the lengths, so that pad and EOS may be one id.
        device: where the result goes.

    Returns:
        ids [B, T] int64, T at least 1, and lengths [B] int64.
    """
    lengths = np.array([len(row) for row in rows], dtype=np.int64)
    ids = np.full((len(rows), max(1, int(lengths.max()))), pad_id, dtype=np.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = row
    return torch.from_numpy(ids).to(device), torch.from_numpy(lengths).to(device)


def mask_of(lengths: Tensor, width: int) -> Tensor:
    """[B] lengths to a [B, width] bool mask, true where a row has a token."""
    return torch.arange(width, device=lengths.device)[None, :] < lengths[:, None]
