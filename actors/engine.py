"""The sampling engine: weights and prompts in, tokens and their logprobs out. Knows no requests, pools or Ray.

All rows advance in lockstep from position 0. The prompts' common beginning is read in one pass; after that, each row
is fed its own next prompt token while it has one, and then the token sampled for it. So ragged prompts need neither
padding nor masks, and any causal language model works through its own forward with its own cache.

    position   0   1   2   3   4   5
    row a      p   p   s   s   s   E          p prompt token, s sampled token, E sampled EOS
    row b      p   p   p   p   s   s
               └prefill┘

Legend: B rows still running, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from common.logprobs import log_distribution
from common.records import Finish, Ids, Logprobs
from common.seeds import uniform_noise

COMPACT_BELOW = 0.75
"""Finished rows leave the batch once fewer than this share of its rows still run."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """One response."""

    ids: Ids
    """[R] sampled ids, EOS included."""
    logprobs: Logprobs
    """[R] logprobs under the distribution that was sampled from."""
    finish: Finish


def race(log_p: Tensor, uniform: Tensor) -> Tensor:
    """Sample by the exponential race: argmin of Exp(1)/p, which is the Gumbel-max trick.

    Small changes of the probabilities change the outcome rarely, which an inverse CDF cannot say.

    Args:
        log_p: [B, V] log-probabilities.
        uniform: [B, V] in (0, 1].

    Returns:
        [B] int64 sampled ids.
    """
    return (log_p - torch.log(-torch.log1p(-uniform))).argmax(-1)


class _Rows:
    """What is known of every row of a batch, finished or not."""

    def __init__(self, prompts: Sequence[Ids], max_new_tokens: Sequence[int], seeds: Sequence[int]) -> None:
        self.prompts = [np.asarray(p, dtype=np.int64) for p in prompts]
        self.prompt_lengths = np.array([len(p) for p in prompts])
        self.max_new_tokens = np.asarray(max_new_tokens)
        self.seeds = np.asarray(seeds, dtype=np.uint64)
        widest = int(self.max_new_tokens.max())
        self.ids = np.zeros((len(prompts), widest), dtype=np.int32)
        self.logprobs = np.zeros((len(prompts), widest), dtype=np.float32)
        self.num_new = np.zeros(len(prompts), dtype=np.int64)
        self.finish: list[Finish | None] = [None] * len(prompts)

    def result(self) -> list[Sampled]:
        """Every row's response, in the order of the prompts."""
        sampled = []
        for i, n in enumerate(self.num_new):
            finish = self.finish[i]
            assert finish is not None, "every row ends by EOS or by its limit"
            sampled.append(Sampled(self.ids[i, :n].copy(), self.logprobs[i, :n].copy(), finish))
        return sampled


class SamplingEngine:
    """Samples from a causal language model with a key-value cache.

    Args:
        policy: the model; used in evaluation mode.
        eos_ids: ids that end a response.
    """

    def __init__(self, policy: PreTrainedModel, eos_ids: frozenset[int]) -> None:
        self.policy = policy.eval()
        self.eos_ids = np.array(sorted(eos_ids))
        self.device = next(policy.parameters()).device

    def renew(self) -> None:
        """The policy's parameters were written to: nothing is derived from them here."""

    @torch.inference_mode()
    def sample(
        self,
        prompts: Sequence[Ids],
        *,
        max_new_tokens: Sequence[int],
        seeds: Sequence[int],
        temperature: float,
        top_p: float = 1.0,
    ) -> list[Sampled]:
        """One response to each prompt.

        Args:
            prompts: [P] ids each, at least one, lengths may differ.
            max_new_tokens: most tokens of each response, at least 1.
            seeds: 64-bit seed of each row; its noise depends on nothing else but the position in the response.
            temperature: divides the logits.
            top_p: nucleus of each token's distribution; the logprobs are those of the truncated one.
        """
        rows = _Rows(prompts, max_new_tokens, seeds)
        running = np.arange(len(prompts))
        position = int(rows.prompt_lengths.min())
        start = np.stack([p[:position] for p in rows.prompts])
        cache = DynamicCache(config=self.policy.config)
        logits = self._forward(start, cache, 0)
        while True:
            tokens = self._next_tokens(rows, running, position, log_distribution(logits, temperature, top_p))
            alive = np.array([rows.finish[i] is None for i in running])
            if not alive.any():
                return rows.result()
            if alive.mean() < COMPACT_BELOW:
                cache.batch_select_indices(torch.from_numpy(np.flatnonzero(alive)).to(self.device))
                running, tokens = running[alive], tokens[alive]
            logits = self._forward(tokens[:, None], cache, position)
            position += 1

    def _forward(self, tokens: np.ndarray, cache: DynamicCache, position: int) -> Tensor:
        """Feed [B, n] tokens that stand at `position` and later; returns the last one's logits, [B, V]."""
        ids = torch.from_numpy(np.ascontiguousarray(tokens)).to(self.device)
        positions = torch.arange(position, position + ids.shape[1], device=self.device)[None, :].expand_as(ids)
        out = self.policy(
            input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        last: Tensor = out.logits[:, -1]
        return last

    def _next_tokens(self, rows: _Rows, running: np.ndarray, position: int, log_p: Tensor) -> np.ndarray:
        """[B] the token of each running row at `position`: from its prompt, or sampled and noted down."""
        slots = rows.num_new[running]
        sampled_t = race(log_p, uniform_noise(rows.seeds[running], slots, log_p.shape[-1], self.device))
        chosen = log_p.gather(-1, sampled_t[:, None]).squeeze(-1).cpu().numpy()
        sampled = sampled_t.cpu().numpy()
        tokens = np.zeros(len(running), dtype=np.int64)
        for k, i in enumerate(running):
            if position < rows.prompt_lengths[i]:
                tokens[k] = rows.prompts[i][position]
                continue
            tokens[k] = sampled[k]
            if rows.finish[i] is not None:
                continue
            rows.ids[i, slots[k]] = sampled[k]
            rows.logprobs[i, slots[k]] = chosen[k]
            rows.num_new[i] += 1
            if sampled[k] in self.eos_ids:
                rows.finish[i] = "stop"
            elif rows.num_new[i] == rows.max_new_tokens[i]:
                rows.finish[i] = "length"
        return tokens
