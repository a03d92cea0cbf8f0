"""The frozen reference: logprobs of a rollout's tokens under the policy before PPO."""

import time
from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from common.logprobs import gather_response, token_logprobs
from common.padding import pad_right
from common.records import Ids, Logprobs, ReferenceChunk, RolloutChunk, Stats


class Reference:
    """A frozen copy of the policy.

    Args:
        policy: a causal language model; never updated.
        batch_sequences: sequences of one pass.
    """

    def __init__(self, policy: PreTrainedModel, *, batch_sequences: int) -> None:
        self.policy = policy.eval()
        self.batch_sequences = batch_sequences
        self.device = next(policy.parameters()).device

    def logprobs(self, chunk: RolloutChunk) -> tuple[ReferenceChunk, Stats]:
        """Logprobs of every response token of a chunk, in order.

        They are tempered as those of the policy were in sampling, else their KL would not be 0 at the start.
        """
        start = time.perf_counter()
        results: list[Logprobs] = []
        pairs = [(p.token_ids, r.response_ids) for p, r in zip(chunk.prompts, chunk.rollouts, strict=True)]
        for first in range(0, len(pairs), self.batch_sequences):
            results.extend(self._forward(pairs[first : first + self.batch_sequences], chunk.temperature))
        return ReferenceChunk(tuple(results)), Stats(
            samples=len(pairs), seconds={"reference": time.perf_counter() - start}
        )

    @torch.inference_mode()
    def _forward(self, pairs: Sequence[tuple[Ids, Ids]], temperature: float) -> list[Logprobs]:
        """Right padding needs no mask: under causal attention no live position sees what follows it."""
        rows = [np.concatenate(pair) for pair in pairs]
        ids, _ = pad_right(rows, 0, self.device)
        prompt_lengths = torch.tensor([len(prompt) for prompt, _ in pairs], device=self.device)
        slots = max(len(response) for _, response in pairs)
        logits = gather_response(self.policy(input_ids=ids, use_cache=False).logits, prompt_lengths, slots)
        tokens = gather_response(ids, prompt_lengths + 1, slots)
        logprobs, _ = token_logprobs(logits, tokens, temperature)
        table = logprobs.float().cpu().numpy()
        return [table[i, : len(response)].copy() for i, (_, response) in enumerate(pairs)]
