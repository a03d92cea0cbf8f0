"""Endless draws from several sources: in fixed proportions, each source through epochs of its own. Pure arithmetic."""

import itertools
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from common.errors import DataError
from common.seeds import mix, permutation

_PHASE = 0x7068617365


class WeightedDraws:
    """Which item each draw takes: a function of the seed and of the draw's index alone, whoever asks and when.

    Of the first n draws, source s has n times its share, give or take less than the number of sources: its draws are
    spread as evenly as can be. Let p be its share of what the sources before it leave; then draw i of those is its own
    where floor((i + 1) p + phase) > floor(i p + phase), and floor(i p + phase) of its own came before.

    Args:
        sizes: [S] items of each source.
        weights: [S] positive; shares are in proportion to them.
        seed_parts: name the random numbers: the phases, and a permutation of each source for each of its epochs.

    Raises:
        DataError: a source has no items.
    """

    def __init__(self, sizes: Sequence[int], weights: Sequence[float], *seed_parts: int) -> None:
        if not all(sizes):
            raise DataError(f"sources of {list(sizes)} items cannot all be drawn from; leave the empty one out")
        self.sizes = tuple(sizes)
        self._firsts = tuple(itertools.accumulate(sizes, initial=0))
        exact = [Fraction(str(weight)) for weight in weights]
        self._shares = [weight / sum(exact[i:]) for i, weight in enumerate(exact)]
        self._phases = [Fraction(mix(*seed_parts, _PHASE, source), 2**64) for source in range(len(sizes))]
        self._seed_parts = seed_parts
        self._orders: dict[tuple[int, int], np.ndarray] = {}

    def __len__(self) -> int:
        """Draws before an item comes for the second time."""
        low, high = 0, sum(self.sizes)
        while low < high:
            middle = (low + high + 1) // 2
            if all(n <= size for n, size in zip(self._counts(middle), self.sizes, strict=True)):
                low = middle
            else:
                high = middle - 1
        return low

    def item_at(self, draw_index: int) -> int:
        """The item of a draw, from 0: its place where all items stand one source after the other."""
        source, before = self.source_at(draw_index)
        epoch, position = divmod(before, self.sizes[source])
        return self._firsts[source] + int(self._order(source, epoch)[position])

    def source_at(self, draw_index: int) -> tuple[int, int]:
        """The source of a draw, and how many draws from it came before."""
        index = draw_index
        last = len(self.sizes) - 1
        for source, (share, phase) in enumerate(zip(self._shares[:last], self._phases[:last], strict=True)):
            before = _floor(index, share, phase)
            if _floor(index + 1, share, phase) > before:
                return source, before
            index -= before
        return last, index  # its share of what is left is 1

    def _counts(self, num_draws: int) -> list[int]:
        """Draws from each source among the first ones."""
        counts, left = [], num_draws
        for share, phase in zip(self._shares, self._phases, strict=True):
            counts.append(_floor(left, share, phase))
            left -= counts[-1]
        return counts

    def _order(self, source: int, epoch: int) -> np.ndarray:
        """The permutation of an epoch; the latest two of a source are kept, for a batch may lie on their border."""
        if (source, epoch) not in self._orders:
            kept = sorted(key for key in self._orders if key[0] == source)
            if len(kept) == 2:
                del self._orders[kept[0]]
            parts = (epoch, source) if source else (epoch,)
            self._orders[source, epoch] = permutation(self.sizes[source], *self._seed_parts, *parts)
        return self._orders[source, epoch]


def _floor(index: int, share: Fraction, phase: Fraction) -> int:
    """Floor of index * share + phase, in integers."""
    return (index * share.numerator * phase.denominator + phase.numerator * share.denominator) // (
        share.denominator * phase.denominator
    )
