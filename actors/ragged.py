"""Sampling with a decoder whose rows have lengths of their own: rows join and leave the batch at any step.

    step     0     1   2   3   4
    slot 0   pppp  s   s   s   s          a prompt of four tokens is read in one pass, the next token is drawn from it
    slot 1   pp    s   s   E
    slot 2   ppp   s   E   ppp s          with more rows than slots, the next one joins where one is done

The slots that run are always the first ones: what is done is overwritten by the last ones. Who joins and leaves when
depends on the rows alone, so that a call's result does, too. Called by `engine.py`.

Legend: B running rows, J joining ones, V vocabulary.
"""

from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from actors.kv_cache import KVCache
from actors.rows import RUNNING, Index, Rows
from actors.sampling import draw

JOINING_TOKENS = 2048
"""Prompt tokens that are read in one pass, or one prompt if it is longer: activations of a pass stay small."""


class RaggedDecoder(Protocol):
    """A network that reads one token of each running row, and the prompts of joining ones, in one pass."""

    def cache_of(self, rows: int, tokens: int) -> KVCache:
        """Memory for as many rows of up to as many tokens."""
        ...

    def advance(
        self, cache: KVCache, tokens: npt.NDArray[np.int64], positions: Index, prompts: list[npt.NDArray[np.int64]]
    ) -> Tensor:
        """Read tokens [B] at positions [B] in the first B slots, and J prompts into the slots after them.

        Returns:
            [B + J, V] logits of each slot's next token.
        """
        ...


def sample_ragged(decoder: RaggedDecoder, rows: Rows, which: Index, width: int) -> None:
    """Complete the given rows, at most `width` of them at a time, in their order."""
    cache = decoder.cache_of(min(width, len(which)), rows.longest)
    running, next_up, how = which[:0], 0, rows.drawing
    while len(running) or next_up < len(which):
        joining = which[next_up : next_up + _joiners(rows, which[next_up : next_up + width - len(running)])]
        next_up += len(joining)
        logits = decoder.advance(
            cache, rows.last_tokens(running), rows.last_positions(running), [rows.prompts[row] for row in joining]
        )
        running = np.concatenate((running, joining))
        ids, logprobs = draw(logits, rows.seeds[running], rows.num_new[running], how.temperature, how.top_p)
        rows.note(running, ids.cpu().numpy(), logprobs.float().cpu().numpy())
        running = _close_gaps(cache, rows, running)


def _joiners(rows: Rows, waiting: Index) -> int:
    """How many of the waiting rows are read in one pass: at least one, if one waits."""
    if not len(waiting):
        return 0
    return max(1, int((np.cumsum(rows.prompt_lengths[waiting]) <= JOINING_TOKENS).sum()))


def _close_gaps(cache: KVCache, rows: Rows, running: Index) -> Index:
    """Move the last running rows into the slots of those that are done; returns the rows by slot."""
    alive = rows.state[running] == RUNNING
    left = int(alive.sum())
    gaps, movers = np.flatnonzero(~alive[:left]), left + np.flatnonzero(alive[left:])
    if len(movers):
        tokens = int(rows.last_positions(running[movers]).max())
        cache.move(torch.from_numpy(movers), torch.from_numpy(gaps), tokens)
        running[gaps] = running[movers]
    return running[:left]
