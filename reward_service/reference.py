"""The frozen reference: logprobs of a rollout's tokens under the policy before PPO.

Legend: B sequences, T tokens of a padded sequence, n response tokens of all of them, V vocabulary.
"""

import time
from collections.abc import Sequence

import numpy as np
import torch
from transformers import PreTrainedModel

from common.fused_layers import fuse_layers
from common.logprobs import log_distribution
from common.narrow_head import head_at
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
        fuse_layers(policy)

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
        """Right padding needs no mask: under causal attention no live position sees what follows it.

        Logits are [n, V], not [B, T, V].
        """
        ids, _ = pad_right([np.concatenate(pair) for pair in pairs], 0, self.device)
        lengths = [len(response) for _, response in pairs]
        rows = torch.from_numpy(np.repeat(np.arange(len(pairs)), lengths)).to(self.device)
        before = [
            np.arange(len(prompt) - 1, len(prompt) - 1 + n) for (prompt, _), n in zip(pairs, lengths, strict=True)
        ]
        positions = torch.from_numpy(np.concatenate(before)).to(self.device)
        with head_at(self.policy, rows, positions) as seen:
            logits = self.policy(input_ids=ids, use_cache=False).logits
        wanted = logits[0] if seen else logits[rows, positions]
        tokens = ids[rows, positions + 1]
        logprobs = log_distribution(wanted, temperature).gather(-1, tokens[:, None]).squeeze(-1)
        return [part.copy() for part in np.split(logprobs.float().cpu().numpy(), np.cumsum(lengths)[:-1])]
