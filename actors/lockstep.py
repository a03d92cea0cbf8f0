"""Sampling through the own forward of any causal language model, with the model's own kind of cache.

All rows advance in lockstep from position 0. The prompts' common beginning is read in one pass; after that, each row
is fed its own next prompt token while it has one, and then the token sampled for it. So ragged prompts need neither
padding nor masks. Called by `engine.py` where `ragged.py` cannot serve.

    position   0   1   2   3   4   5
    row a      p   p   s   s   s   E          p prompt token, s sampled token, E sampled EOS
    row b      p   p   p   p   s   s
               └prefill┘

Legend: B rows still running, V vocabulary.
"""

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from actors.rows import RUNNING, Index, Rows
from actors.sampling import draw

COMPACT_BELOW = 0.75
"""Finished rows leave the batch once fewer than this share of its rows still run: leaving copies the whole cache."""


class OwnForward:
    """A causal language model and its cache.

    Args:
        policy: the model.
    """

    def __init__(self, policy: PreTrainedModel) -> None:
        self.policy = policy
        self.device = next(policy.parameters()).device
        self.cache = DynamicCache(config=policy.config)

    def feed(self, tokens: npt.NDArray[np.int64], position: int, *, keep: int = 1) -> Tensor:
        """Feed [B, n] tokens that stand at `position` and later; returns the logits of the last `keep`, [B, k, V]."""
        ids = torch.from_numpy(np.ascontiguousarray(tokens)).to(self.device)
        positions = torch.arange(position, position + ids.shape[1], device=self.device)[None, :].expand_as(ids)
        out = self.policy(
            input_ids=ids, position_ids=positions, past_key_values=self.cache, use_cache=True, logits_to_keep=keep
        )
        logits: Tensor = out.logits
        return logits

    def keep(self, places: npt.NDArray[np.int64]) -> None:
        """Forget all rows but those at the given places."""
        self.cache.batch_select_indices(torch.from_numpy(places).to(self.device))


def sample_in_lockstep(policy: PreTrainedModel, rows: Rows, which: Index) -> None:
    """Complete the given rows together."""
    model = OwnForward(policy)
    longest = int(rows.prompt_lengths[which].max())
    prompts = np.zeros((len(which), longest), dtype=np.int64)
    for place, row in enumerate(which):
        prompts[place, : rows.prompt_lengths[row]] = rows.prompts[row]
    position = int(rows.prompt_lengths[which].min())
    logits = model.feed(prompts[:, :position], 0)[:, -1]
    while True:
        is_drawn = (position >= rows.prompt_lengths[which]) & (rows.state[which] == RUNNING)
        tokens = np.zeros(len(which), dtype=np.int64) if position >= longest else prompts[:, position].copy()
        tokens[is_drawn] = _draw(rows, which[is_drawn], logits, is_drawn)
        alive = rows.state[which] == RUNNING
        if not alive.any():
            return
        if alive.mean() < COMPACT_BELOW:
            model.keep(np.flatnonzero(alive))
            which, tokens, prompts = which[alive], tokens[alive], prompts[alive]
        logits = model.feed(tokens[:, None], position)[:, -1]
        position += 1


def _draw(rows: Rows, which: Index, logits: Tensor, is_drawn: npt.NDArray[np.bool_]) -> npt.NDArray[np.int64]:
    """Draw and note a token of each of the given rows, whose logits are those where `is_drawn`."""
    if not len(which):
        return np.zeros(0, dtype=np.int64)
    mine = logits if is_drawn.all() else logits[torch.from_numpy(is_drawn).to(logits.device)]
    how = rows.drawing
    ids, logprobs = draw(mine, rows.seeds[which], rows.num_new[which], how.temperature, how.top_p)
    tokens: npt.NDArray[np.int64] = ids.cpu().numpy()
    rows.note(which, tokens, logprobs.float().cpu().numpy())
    return tokens
