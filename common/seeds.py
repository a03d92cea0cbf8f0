"""All randomness of a run follows from its seed by counters, so that no result depends on who computes it, or when.

`mix` is splitmix64's finaliser (Steele, Lea & Flood, OOPSLA 2014); `uniform_noise` hashes (key, index) to a number in
(0, 1] with murmur3's 32-bit finaliser, in integer arithmetic that gives the same bits on every device.
"""

import numpy as np
import torch
from torch import Tensor

_MASK64 = (1 << 64) - 1


def mix(*parts: int) -> int:
    """Hash integers into one of 64 bits; any change of a part or of the order changes half of the bits."""
    state = 0x9E3779B97F4A7C15
    for part in parts:
        state = (state + (part & _MASK64) + 0x9E3779B97F4A7C15) & _MASK64
        state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
        state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _MASK64
        state ^= state >> 31
    return state


def _mix_pairs(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """[N] uint64 `mix(a, b)` of each pair; unsigned integers of numpy wrap as those of `mix` do."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    state = np.full(len(first), golden)
    for parts in (first, second):
        state = state + parts.astype(np.uint64) + golden
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(31)
    return state


def sample_seed(run_seed: int, draw_index: int, sample_index: int) -> int:
    """Seed of one sample's noise: the same whoever generates it, and however often."""
    return mix(run_seed, 1, draw_index, sample_index)


def generator(*parts: int) -> np.random.Generator:
    """A numpy generator of its own for one purpose, named by integers."""
    return np.random.Generator(np.random.Philox(key=mix(*parts)))


def permutation(length: int, *parts: int) -> np.ndarray:
    """[length] int64, a permutation that follows from the parts alone."""
    return generator(*parts).permutation(length)


def seed_everything(seed: int) -> None:
    """Seed torch's global generator: used for initial weights and dropout only, at the start of a stage."""
    torch.manual_seed(mix(seed) & 0x7FFFFFFF)


def _fmix32(h: Tensor) -> Tensor:
    """Murmur3's 32-bit finaliser on int32 tensors, in place; multiplication wraps as unsigned does."""
    h ^= (h >> 16) & 0xFFFF
    h *= -2048144789  # 0x85EBCA6B as int32
    h ^= (h >> 13) & 0x7FFFF
    h *= -1028477387  # 0xC2B2AE35 as int32
    h ^= (h >> 16) & 0xFFFF
    return h


def uniform_noise(seeds: np.ndarray, positions: np.ndarray, num_values: int, device: torch.device) -> Tensor:
    """Uniform noise keyed by (seed, position, index).

    Args:
        seeds: [B] uint64, one per row.
        positions: [B] int64, which token of the row is drawn.
        num_values: V, the vocabulary size.
        device: where the noise is needed.

    Returns:
        [B, V] float32 in (0, 1]; near 0 it resolves 2^-33, so that rare tokens keep their share.
    """
    keys = _mix_pairs(seeds, positions)
    low = torch.from_numpy((keys & np.uint64(0xFFFFFFFF)).astype(np.uint32).view(np.int32)).to(device)
    high = torch.from_numpy((keys >> np.uint64(32)).astype(np.uint32).view(np.int32)).to(device)
    index = torch.arange(num_values, dtype=torch.int32, device=device) * -1640531527  # 0x9E3779B9
    h = _fmix32(index[None, :] ^ low[:, None])
    h = _fmix32(h + high[:, None])
    unsigned = torch.where(h < 0, h.float() + 2.0**32, h.float())  # exact near 0, where adding 2^31 first would round
    return (unsigned + 0.5) * 2.0**-32
