"""PPO as one would write it first, to measure ours against: rows padded to the longest of the batch, logits and their
softmax at every position, hidden states of every layer, no fused optimizer.

The losses are ours (learner/losses.py), so that both ways do the same sums. Called by `learner.py` beside it.

Legend: B sequences, T tokens of a padded sequence, R response slots.
"""

import copy

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from common.logprobs import gather_response
from learner.batch import Batch
from learner.losses import policy_loss, value_loss


class PlainPPO:
    """A policy, a value head and AdamW.

    Args:
        policy: copied.
    """

    def __init__(self, policy: PreTrainedModel) -> None:
        self.policy = copy.deepcopy(policy)
        self.value_head = nn.Linear(policy.config.get_text_config().hidden_size, 1)
        self.optimizer = torch.optim.AdamW([*self.policy.parameters(), *self.value_head.parameters()], lr=1e-6)

    @torch.no_grad()
    def old(self, batch: Batch, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Logprobs and values, [b, R], of the policy as it is."""
        return self._forward(batch, rows)

    def step(self, batch: Batch, rows: Tensor, old: tuple[Tensor, Tensor]) -> None:
        """One optimizer step; the score is the advantage of each token, and the return."""
        logprobs, values = self._forward(batch, rows)
        mask = batch.response_mask[rows]
        gain = batch.scores[rows, None].expand_as(mask)
        count = mask.sum()
        loss, _ = policy_loss(logprobs, old[0], gain, mask, clip_eps=0.2, denominator=count)
        critic, _ = value_loss(values, old[1], gain, mask, clip_eps=0.2, denominator=count)
        self.optimizer.zero_grad()
        torch.autograd.backward(loss + 0.1 * critic)
        nn.utils.clip_grad_norm_(self.policy.parameters(), 1.0)
        self.optimizer.step()

    def _forward(self, batch: Batch, rows: Tensor) -> tuple[Tensor, Tensor]:
        ids, prompts = batch.input_ids[rows], batch.prompt_lengths[rows]
        out = self.policy(input_ids=ids, use_cache=False, output_hidden_states=True)
        log_p = torch.log_softmax(out.logits[:, :-1], dim=-1)
        logprobs = log_p.gather(-1, ids[:, 1:, None]).squeeze(-1)
        values = self.value_head(out.hidden_states[-1]).squeeze(-1)
        return gather_response(logprobs, prompts, batch.num_slots), gather_response(values, prompts, batch.num_slots)
