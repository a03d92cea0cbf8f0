"""Batches of texts of like length: little padding, results in the caller's order."""

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt

from common.records import Ids


def by_length(
    rows: Sequence[Ids], batch_sequences: int, compute: Callable[[list[Ids]], npt.NDArray[np.float64]]
) -> npt.NDArray[np.float64]:
    """Apply `compute` to batches of rows of like length.

    Args:
        rows: ids, at least one row.
        batch_sequences: most rows of a batch.
        compute: rows to [B, K] numbers.

    Returns:
        [N, K] float64, in the order of `rows`.
    """
    order = sorted(range(len(rows)), key=lambda i: (len(rows[i]), i))
    starts = range(0, len(rows), batch_sequences)
    parts = [compute([rows[i] for i in order[start : start + batch_sequences]]) for start in starts]
    back = np.empty(len(rows), dtype=np.int64)
    back[order] = np.arange(len(rows))
    return np.concatenate(parts)[back]
