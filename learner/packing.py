"""How an update is cut into minibatches, and these into microbatches: by samples, or by tokens with samples of like
length together. Pure.

    by tokens, at most 24          a a a a a a a a │ b b b b b · │ c c c
                                   d d d d d d d d │ e e e e e e │ f f ·       · padding
                                   g g g g g g g · │ h h h h · · │ i · ·

Each microbatch's loss is a sum over tokens divided by the token count of the whole minibatch (learner/losses.py), so
the gradient does not depend on the cut but for rounding.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from common.seeds import permutation

EFFICIENT_TOKENS = 1024
"""Tokens of a pass, padding included, from which on products are as fast as they get on a CPU."""
_SHUFFLE = 2
"""Names the purpose of the minibatch order among the run's random numbers."""


def minibatches(num_rows: int, size: int, *, epochs: int, run_seed: int, step: int) -> Iterator[Tensor]:
    """Positions of the rows of each optimizer step: every row once an epoch, in an order that follows from the seed.

    Args:
        num_rows: samples of the update.
        size: of a minibatch.
        epochs: passes over the rows.
        run_seed: of the run.
        step: updates before this one.
    """
    for epoch in range(epochs):
        yield from torch.split(torch.from_numpy(permutation(num_rows, run_seed, _SHUFFLE, step, epoch)), size)


def by_sequences(num_rows: int, size: int) -> list[Tensor]:
    """Positions 0 … num_rows - 1 in pieces of `size`, the last one shorter where it does not divide."""
    return list(torch.split(torch.arange(num_rows), size))


def by_tokens(lengths: Tensor, max_tokens: int) -> list[Tensor]:
    """Positions of rows, longest first, in pieces of which rows times longest row is at most `max_tokens`.

    Longest first, so that what does not fit into memory shows in the first pass. Rows of one length keep their order.

    Args:
        lengths: [N] int64, tokens of each row, prompt included.
        max_tokens: of a padded piece.

    Returns:
        Int64 positions, each in exactly one piece.

    Raises:
        ValueError: a row alone is longer than max_tokens.
    """
    ranked = torch.argsort(lengths, descending=True, stable=True)
    longest = lengths[ranked].tolist()
    if longest and longest[0] > max_tokens:
        raise ValueError(f"a sample of {longest[0]} tokens exceeds microbatch_tokens={max_tokens}; raise it")
    pieces, start = [], 0
    for end in range(1, len(longest) + 1):
        if end == len(longest) or (end + 1 - start) * longest[start] > max_tokens:
            pieces.append(ranked[start:end])
            start = end
    return pieces


def rows_together(size: int, width: int) -> int:
    """Rows of a pass without gradients on a CPU: as many minibatches of `size` rows of `width` tokens as there are in
    EFFICIENT_TOKENS, at least one.
    """
    return size * max(1, EFFICIENT_TOKENS // (size * width))


def widen(narrow: Tensor, slots: int) -> Tensor:
    """[B, r] to [B, R] with zeros."""
    return torch.nn.functional.pad(narrow, (0, slots - narrow.shape[1]))
