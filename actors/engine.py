"""The sampling engine: weights and prompts in, tokens and their logprobs out. Knows no requests, pools or Ray.

It chooses between two ways that give the same tokens, but for ties within rounding:

    any causal language model   ─▶ lockstep.py   the model's own forward and cache, all rows at one position
    Llama, Mistral, Qwen2       ─▶ ragged.py     llama_decoder.py over copies of the weights, rows of any lengths

Called by `worker.py`. Legend: N rows, T tokens of a text, V vocabulary.
"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedModel

from actors.llama_decoder import LlamaDecoder, why_not_llama
from actors.lockstep import OwnForward, sample_in_lockstep
from actors.ragged import sample_ragged
from actors.rows import Drawing, Rows, Sampled
from common.logprobs import token_logprobs
from common.placement_config import EngineKind
from common.records import EnginePath, Ids

GENERIC = 'rollout.engine = "generic"'


class SamplingEngine:
    """Samples from a causal language model with a key-value cache.

    Args:
        policy: the model; used in evaluation mode. After a change of its weights, `renew` must be called.
        eos_ids: ids that end a response.
        kind: `auto` decodes the Llama family fast; `generic` uses every model's own forward.
        batch_sequences: rows that run at a time; None: all of a call.
        continuous: rows of a call beyond batch_sequences join as others are done, rather than when all are; the
            generic way always waits for all.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        eos_ids: frozenset[int],
        *,
        kind: EngineKind = "auto",
        batch_sequences: int | None = None,
        continuous: bool = False,
    ) -> None:
        self.policy = policy.eval()
        self.eos_ids = np.array(sorted(eos_ids), dtype=np.int64)
        self.batch_sequences = batch_sequences
        self.continuous = continuous
        self.device = next(policy.parameters()).device
        why_not = GENERIC if kind == "generic" else why_not_llama(policy)
        self._decoder = None if why_not else LlamaDecoder(policy)
        self.reason = why_not if self._decoder is None else self._decoder.why_not_packed
        """Why not the faster way; empty where there is none."""

    @property
    def path(self) -> EnginePath:
        """Which way serves."""
        if self._decoder is None:
            return "generic"
        return "llama" if self._decoder.why_not_packed else "llama_packed"

    def renew(self) -> None:
        """The policy's weights have changed: so must all copies."""
        if self._decoder is not None:
            self._decoder.load()

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
        rows = Rows(prompts, max_new_tokens, seeds, Drawing(temperature, top_p, self.eos_ids))
        width, everything = self.batch_sequences or len(prompts), np.arange(len(prompts))
        if self._decoder is not None and self.continuous:
            sample_ragged(self._decoder, rows, everything, width)
            return rows.result()
        for start in range(0, len(prompts), width):
            if self._decoder is not None:
                sample_ragged(self._decoder, rows, everything[start : start + width], width)
            else:
                sample_in_lockstep(self.policy, rows, everything[start : start + width])
        return rows.result()

    @torch.inference_mode()
    def logprobs(self, texts: Ids) -> npt.NDArray[np.float32]:
        """Logprobs of given texts, through the weights, products and cache that generate.

        Args:
            texts: [N, T] ids, at least three of each text.

        Returns:
            [N, T - 1] float32, of all tokens but the first, at temperature 1.
        """
        ids = texts.astype(np.int64)
        logits = self._own_logits(ids[:, :-1]) if self._decoder is None else self._decoder.read(ids[:, :-1])
        logprobs, _ = token_logprobs(logits, torch.from_numpy(ids[:, 1:]).to(self.device), 1.0)
        mine: npt.NDArray[np.float32] = logprobs.float().cpu().numpy()
        return mine

    def _own_logits(self, ids: npt.NDArray[np.int64]) -> Tensor:
        """[N, T] to [N, T, V], the last token by the cache."""
        model, before = OwnForward(self.policy), ids.shape[1] - 1
        return torch.cat((model.feed(ids[:, :-1], 0, keep=before), model.feed(ids[:, -1:], before)), dim=1)
