"""One token of each row, drawn from its distribution with noise that depends on the row's seed and slot alone.

By the exponential race, argmin of Exp(1) / p, which is the Gumbel-max trick: small changes of the probabilities change
the outcome rarely, which an inverse CDF cannot say. The first of several exponentials with rates p arrives with their
sum as its rate, so the race is run twice: among blocks of the vocabulary, then among the tokens of the block that won.
The distribution is the same, and noise is needed for blocks and one block instead of for every token.

Called by the engine's loops and by `chat.py`. Legend: B rows, V vocabulary, G blocks.
"""

import numpy as np
import torch
from torch import Tensor

from common.logprobs import distribution
from common.seeds import uniform_noise

BLOCK = 128
"""Tokens of one block; the last one has what is left. Decides, with the seed, which token is drawn."""
LATEST = 32.0
"""Where a uniform number rounds to 1, its exponential would be infinite, and ties with tokens of probability 0."""


def draw(
    logits: Tensor, seeds: np.ndarray, slots: np.ndarray, temperature: float, top_p: float = 1.0
) -> tuple[Tensor, Tensor]:
    """Sample one token of each row.

    Args:
        logits: [B, V] as the model gives them.
        seeds: [B] uint64 of each row.
        slots: [B] int64 how many tokens each row has drawn before.
        temperature: divides the logits.
        top_p: nucleus, see `common.logprobs.nucleus`.

    Returns:
        [B] int64 ids and [B] float32 logprobs under the distribution that was sampled from.
    """
    p = distribution(logits, temperature, top_p)
    num_tokens = p.shape[-1]
    masses = _block_sums(p)
    num_blocks = masses.shape[-1]
    noise = uniform_noise(seeds, slots, BLOCK + num_blocks, p.device)
    arrivals = (-torch.log1p(-noise)).clamp_(max=LATEST)
    block = (arrivals[:, BLOCK:] / masses).argmin(-1, keepdim=True)
    candidates = block * BLOCK + torch.arange(BLOCK, device=p.device)
    mass = p.gather(-1, candidates.clamp(max=num_tokens - 1))
    mass = mass.masked_fill_(candidates >= num_tokens, 0)  # behind the vocabulary's end nothing can be drawn
    winner = (arrivals[:, :BLOCK] / mass).argmin(-1, keepdim=True)
    return candidates.gather(-1, winner).squeeze(-1), mass.gather(-1, winner).squeeze(-1).log()


def _block_sums(p: Tensor) -> Tensor:
    """[B, V] to [B, G]."""
    whole = p.shape[-1] // BLOCK * BLOCK
    sums = torch.unflatten(p[:, :whole], -1, (-1, BLOCK)).sum(-1) if whole else p[:, :0]
    return sums if whole == p.shape[-1] else torch.cat((sums, p[:, whole:].sum(-1, keepdim=True)), dim=-1)
