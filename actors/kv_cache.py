"""Keys and values of all layers in one block of memory, in which every row has a length of its own.

    slot 0   k k k k k . . .       a row's tokens stand at their positions, from 0
    slot 1   k k . . . . . .       . zeros, or what a row that is done has left: masked by length, and always finite
    slot 2   k k k k k k k .

Knows neither prompts nor which row sits in which slot (`ragged.py` does), and computes nothing.

Legend: S slots, T positions, K key-value heads, D numbers of a head.
"""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What of a model decides how much it remembers of a token."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device


class KVCache:
    """Memory for `rows` texts of up to `tokens` tokens each.

    Args:
        shape: of the model.
        rows: S.
        tokens: T.
    """

    def __init__(self, shape: CacheShape, rows: int, tokens: int) -> None:
        # Zeros, for attention multiplies what is masked by 0, and 0 times whatever was in the memory may be no number.
        self._data = torch.zeros(
            (shape.layers, rows, tokens, 2, shape.kv_heads, shape.head_dim), dtype=shape.dtype, device=shape.device
        )
        self.rows, self.tokens = rows, tokens

    @property
    def num_bytes(self) -> int:
        """Of memory."""
        return self._data.nbytes

    def clear(self) -> None:
        """Forget all."""
        self._data.zero_()

    def write(self, layer: int, slots: Tensor, positions: Tensor, keys_values: Tensor) -> None:
        """Remember [N, 2, K, D] of N tokens at [N] slots and [N] positions."""
        self._data[layer].index_put_((slots, positions), keys_values)

    def read(self, layer: int, first: int, last: int, tokens: int) -> tuple[Tensor, Tensor]:
        """Views of keys and values, [last - first, K, tokens, D] each."""
        pairs = self._data[layer, first:last, :tokens]
        return pairs[:, :, 0].transpose(1, 2), pairs[:, :, 1].transpose(1, 2)

    def move(self, sources: Tensor, targets: Tensor, tokens: int) -> None:
        """Copy the first `tokens` tokens of rows to the slots of others."""
        if len(sources):
            self._data[:, targets, :tokens] = self._data[:, sources, :tokens]
