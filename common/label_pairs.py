"""From labelled texts to pairs of which one is preferred: matched by length, so that length tells nothing. Pure.

These are derived from labels, not ranked by people: `common.preferences` calls it where the configuration asks for it.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

Integers = npt.NDArray[np.int64]


def match_by_length(
    texts: Sequence[str], labels: Integers, words: Integers, *, tolerance: float, seed: int
) -> tuple[Integers, Integers]:
    """As many pairs of different classes as can be, each text in one at most; who meets whom is as good as random.

    Args:
        texts: N texts; their hashes decide who meets whom, whatever their order.
        labels: [N] classes.
        words: [N] words of each text, at least 1.
        tolerance: largest difference of words in a pair, over the shorter one's.
        seed: another one matches otherwise.

    Returns:
        Indices [P] of the texts of the higher class, and [P] of the lower.
    """
    keys = np.array([xxhash.xxh3_64_intdigest(text.encode(), seed) for text in texts], dtype=np.uint64)
    # Numbers of words that share a bucket differ by less than the factor 1 + tolerance.
    buckets = words if tolerance == 0 else np.floor(np.log(words) / np.log1p(tolerance)).astype(np.int64)
    order = np.lexsort((keys, labels, buckets))
    higher, lower = [], []
    for bucket in np.split(order, np.flatnonzero(np.diff(buckets[order])) + 1):
        # Sorted by class, a text and the one half the bucket further on differ, unless one class has more than half.
        shift = -(-len(bucket) // 2)
        low, high = bucket[: len(bucket) - shift], bucket[shift:]
        differ = labels[low] != labels[high]
        lower.append(low[differ])
        higher.append(high[differ])
    return np.concatenate(higher), np.concatenate(lower)


def turned_round(
    texts: Sequence[str], higher: Integers, lower: Integers, *, fraction: float, seed: int
) -> npt.NDArray[np.bool_]:
    """[P] which pairs a labeller who errs in `fraction` of the cases gets wrong: by a hash of both texts."""
    bound = int(fraction * 2**64)
    hashes = (
        xxhash.xxh3_64_intdigest(f"{texts[h]}\0{texts[low]}".encode(), seed)
        for h, low in zip(higher, lower, strict=True)
    )
    return np.array([number < bound for number in hashes], dtype=bool)
