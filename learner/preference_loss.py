"""The loss of a reward model over rankings: Bradley-Terry for every pair, margins and centring. Pure functions.

Legend: T texts, N rankings, P pairs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class Pairs:
    """All pairs of N rankings: of K texts in order there are K (K - 1) / 2."""

    better: npt.NDArray[np.int64]
    """[P] index of the text that stands before the other one in its ranking."""
    worse: npt.NDArray[np.int64]
    """[P] index of the other one."""
    weights: npt.NDArray[np.float32]
    """[P] one over the number of pairs of the ranking, so that each ranking counts once."""
    margins: npt.NDArray[np.float32]
    """[P] by how much the scores should differ at least."""


def pairs_of(rankings: Sequence[npt.NDArray[np.int64]], margins: npt.NDArray[np.float32]) -> Pairs:
    """Every pair of every ranking.

    Args:
        rankings: N arrays of indices of texts, the best first.
        margins: [N] margin of each pair of a ranking.
    """
    corners = [np.triu_indices(len(ranking), k=1) for ranking in rankings]
    sizes = np.array([len(rows) for rows, _ in corners])
    return Pairs(
        better=np.concatenate([r[rows] for r, (rows, _) in zip(rankings, corners, strict=True)]),
        worse=np.concatenate([r[columns] for r, (_, columns) in zip(rankings, corners, strict=True)]),
        weights=np.repeat(1 / sizes, sizes).astype(np.float32),
        margins=np.repeat(margins, sizes),
    )


def preference_loss(scores: Tensor, pairs: Pairs, *, margin_coef: float, centring_coef: float) -> Tensor:
    """Sum over rankings of the mean over their pairs of -log sigmoid(r_b - r_w - m) + c (r_b + r_w)^2.

    InstructGPT's eq. 1 (arXiv:2203.02155) with the margin of Llama 2's eq. 2 (arXiv:2307.09288) and the auxiliary loss
    of arXiv:2312.09244.

    Args:
        scores: [T] one per text.
        pairs: whose indices are of `scores`.
        margin_coef: times the margins is m.
        centring_coef: c.

    Returns:
        A scalar, to be divided by the number of rankings.
    """
    better, worse = (scores[torch.from_numpy(i).to(scores.device)] for i in (pairs.better, pairs.worse))
    weights, margins = (torch.from_numpy(x).to(scores) for x in (pairs.weights, pairs.margins))
    losses = nn.functional.softplus(worse - better + margin_coef * margins)
    return (weights * (losses + centring_coef * (better + worse).square())).sum()
