"""A policy that answers token by token, with the text so far. Knows no conversation, terminal, run or Ray.

    prompt ids ─▶ Speaker.answer ─▶ Reply: piece, piece, … ─▶ Answer

Noise, race and distribution are those of the engine: an answer is what a rollout worker would sample with the same seed
and top_p. What is said before the prompt, and what is left out of it, is decided in `conversation.py`.

Legend: V vocabulary.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, PreTrainedTokenizerBase

from actors.sampling import draw
from common.config_base import Config
from common.records import Ids
from common.seeds import mix
from common.text import decode

INCOMPLETE = "\N{REPLACEMENT CHARACTER}"
"""How a tokenizer decodes the first bytes of a character whose other bytes are still to come."""

Ending = Literal["stop", "length", "interrupted"]


class Sampling(Config):
    """How answers are drawn."""

    temperature: float = Field(default=0.8, ge=0, allow_inf_nan=False)
    """Divides the logits; 0 always takes the likeliest token."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Draw among the likeliest tokens that hold this probability together (arXiv:1904.09751); 1 draws among all."""
    max_tokens: int = Field(default=256, ge=1)
    """Most tokens of an answer."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """The same seed, and the same words before, give the same answers."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a policy said."""

    prompt_ids: Ids
    """[P] what it was given."""
    response_ids: Ids
    """[R] what it sampled, EOS included."""
    text: str
    """Of the response."""
    ending: Ending
    """`stop`: by an EOS token; `length`: it was long enough; `interrupted`: nobody wanted to hear more."""


class TextStream:
    """Text from ids that come one at a time: pieces that, joined, are the text of all ids.

    Args:
        tokenizer: decodes.
        before: ids that stand before the first one and are not shown, for spaces depend on them.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, before: Ids) -> None:
        self._tokenizer = tokenizer
        self._ids = [int(i) for i in before]
        self._start = self._shown = len(self._decoded())

    def push(self, token_id: int) -> str:
        """What can be shown of the text now; nothing while the last character is incomplete."""
        self._ids.append(token_id)
        whole = self._decoded()
        if whole.endswith(INCOMPLETE):
            return ""
        return self._show(whole)

    def rest(self) -> str:
        """What is left to show when no more ids come."""
        return self._show(self._decoded())

    @property
    def text(self) -> str:
        """All of it."""
        return self._decoded()[self._start :]

    def _show(self, whole: str) -> str:
        piece, self._shown = whole[self._shown :], max(self._shown, len(whole))
        return piece

    def _decoded(self) -> str:
        return decode(self._tokenizer, self._ids)


class Reply:
    """An answer in the making: iterate over its pieces of text; whoever stops early has the answer so far."""

    def __init__(self, prompt_ids: Ids, tokens: Iterator[int], stream: TextStream, eos_ids: frozenset[int]) -> None:
        self._prompt_ids = prompt_ids
        self._tokens = tokens
        self._stream = stream
        self._eos_ids = eos_ids
        self._response: list[int] = []
        self._ending: Ending = "interrupted"

    def __iter__(self) -> Iterator[str]:
        for token in self._tokens:
            self._response.append(token)
            if token in self._eos_ids:
                self._ending = "stop"
                break
            if piece := self._stream.push(token):
                yield piece
        else:
            self._ending = "length"
        if piece := self._stream.rest():
            yield piece

    def answer(self) -> Answer:
        """What has been said."""
        response = np.asarray(self._response, dtype=np.int32)
        return Answer(self._prompt_ids, response, self._stream.text, self._ending)


class Speaker:
    """A policy and its tokenizer.

    Args:
        policy: a causal language model, in evaluation mode.
        tokenizer: the policy's own.
        eos_ids: ids that end an answer.
    """

    def __init__(self, policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, eos_ids: frozenset[int]) -> None:
        self.policy = policy.eval()
        self.tokenizer = tokenizer
        self.eos_ids = eos_ids
        self.device = next(policy.parameters()).device

    @property
    def context_tokens(self) -> int | None:
        """Most tokens of prompt and answer together; None where the architecture knows no limit."""
        limit: int | None = getattr(self.policy.config.get_text_config(), "max_position_embeddings", None)
        return limit

    def answer(self, prompt_ids: Ids, sampling: Sampling, number: int, *, continues: bool) -> Reply:
        """Begin an answer; the tokens are sampled as the reply is iterated over.

        Args:
            prompt_ids: [P] at least one.
            sampling: how tokens are drawn.
            number: of the answer; those of other numbers are drawn with other noise.
            continues: the answer goes on with the text of the prompt, rather than being a turn of its own.
        """
        limit = sampling.max_tokens
        if self.context_tokens is not None:
            limit = min(limit, self.context_tokens - len(prompt_ids))
        stream = TextStream(self.tokenizer, prompt_ids if continues else np.zeros(0, dtype=np.int32))
        tokens = self._tokens(prompt_ids, sampling, mix(sampling.seed, number), limit)
        return Reply(prompt_ids, tokens, stream, self.eos_ids)

    def _tokens(self, prompt_ids: Ids, sampling: Sampling, seed: int, limit: int) -> Iterator[int]:
        """Sampled ids, one after the other, EOS included; goes on behind it for as long as it is asked."""
        cache = DynamicCache(config=self.policy.config)
        position, fed = 0, torch.from_numpy(np.asarray(prompt_ids, dtype=np.int64)).to(self.device)[None]
        for slot in range(limit):
            logits = self._logits(fed, cache, position)
            position += fed.shape[1]
            fed = self._draw(logits, sampling, seed, slot)[:, None]
            yield int(fed)

    @torch.inference_mode()
    def _logits(self, ids: Tensor, cache: DynamicCache, position: int) -> Tensor:
        """Feed [1, n] ids that stand at `position` and later; returns the last one's logits, [1, V]."""
        positions = torch.arange(position, position + ids.shape[1], device=self.device)[None]
        out = self.policy(
            input_ids=ids, position_ids=positions, past_key_values=cache, use_cache=True, logits_to_keep=1
        )
        last: Tensor = out.logits[:, -1]
        return last

    @torch.inference_mode()
    def _draw(self, logits: Tensor, sampling: Sampling, seed: int, slot: int) -> Tensor:
        """[1] the id that is drawn from [1, V] logits."""
        if sampling.temperature == 0:
            return logits.argmax(-1)
        seeds, slots = np.array([seed], np.uint64), np.array([slot])
        return draw(logits, seeds, slots, sampling.temperature, sampling.top_p)[0]
