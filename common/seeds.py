"""All randomness of a run follows from its seed by counters, so that no result depends on who computes it, or when.

`mix` is splitmix64's finaliser (Steele, Lea & Flood, OOPSLA 2014); `uniform_noise` hashes (key, index) to a number in
(0, 1] with murmur3's 32-bit finaliser, in integer arithmetic that gives the same bits everywhere.
"""

import numpy as np
import numpy.typing as npt
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


def _fmix32(h: npt.NDArray[np.uint32]) -> npt.NDArray[np.uint32]:
    """Murmur3's 32-bit finaliser, in place; multiplication wraps."""
    h ^= h >> np.uint32(16)
    h *= np.uint32(0x85EBCA6B)
    h ^= h >> np.uint32(13)
    h *= np.uint32(0xC2B2AE35)
    h ^= h >> np.uint32(16)
    return h


def uniform_noise(seeds: np.ndarray, positions: np.ndarray, num_values: int, device: torch.device) -> Tensor:
    """Uniform noise keyed by (seed, position, index).

    It is made on the CPU for every device: there is little of it, and numpy starts small work faster than torch.

    Args:
        seeds: [B] uint64, one per row.
        positions: [B] int64, which token of the row is drawn.
        num_values: how many numbers each row needs.
        device: where the noise is needed.

    Returns:
        [B, num_values] float32 in (0, 1]; near 0 it resolves 2^-33, so that rare tokens keep their share.
    """
    keys = _mix_pairs(seeds, positions)
    low, high = keys.astype(np.uint32), (keys >> np.uint64(32)).astype(np.uint32)
    index = np.arange(num_values, dtype=np.uint32) * np.uint32(0x9E3779B9)
    hashed = _fmix32(index[None, :] ^ low[:, None])
    hashed += high[:, None]
    uniform = _fmix32(hashed).astype(np.float32)
    uniform += np.float32(0.5)
    uniform *= np.float32(2.0**-32)
    return torch.from_numpy(uniform).to(device)
