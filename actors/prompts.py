"""An endless, resumable stream of prompts: the beginnings of tokenised texts. A prompt follows from (seed, draw_index)
alone, whoever asks for it and when; the only state is the index of the next draw. Knows no tokenizer and no model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.data_config import LengthRange
from common.errors import DataError
from common.records import Ids, Prompt
from common.seeds import mix, permutation

# Purposes of the random numbers, as parts of their keys.
_ORDER, _PROMPT_TOKENS, _RESPONSE_TOKENS = 0x6F72646572, 0x70726F6D7074, 0x726573706F6E


@dataclass(frozen=True, slots=True)
class LengthSampler:
    """Draws a number of tokens from min, …, max, each equally often; a pure function of its key."""

    min: int
    """Shortest, in tokens."""
    max: int
    """Longest, in tokens; it is drawn too."""

    def __post_init__(self) -> None:
        if not 1 <= self.min <= self.max:
            raise ValueError(f"lengths from {self.min} to {self.max} tokens cannot be drawn; need 1 <= min <= max")

    def draw(self, *key_parts: int) -> int:
        """The length for this key; another key draws independently."""
        return self.min + mix(*key_parts) % (self.max - self.min + 1)


class PromptStream:
    """Prompts in an order that goes through all texts once per epoch, in a new permutation each epoch.

    Args:
        texts: [N] token ids of each text, int32, without special tokens.
        prompt_tokens: Lengths of prompts. At least one token of a text is never in its prompt, so that a text of L
            tokens gives prompts of at most L - 1; texts of up to `min` tokens are left out.
        response_tokens: Lengths that responses may have, drawn with the prompt.
        seed: Seed of the run.

    Raises:
        DataError: no text is long enough.
    """

    def __init__(
        self, texts: Sequence[Ids], *, prompt_tokens: LengthRange, response_tokens: LengthRange, seed: int
    ) -> None:
        self._texts = texts
        self._usable = np.flatnonzero([len(text) > prompt_tokens.min for text in texts])
        if not self._usable.size:
            longest = max((len(text) for text in texts), default=0)
            raise DataError(
                f"none of {len(texts)} texts is long enough for a prompt: prompt_tokens.min={prompt_tokens.min} needs "
                f"texts of {prompt_tokens.min + 1} tokens or more, the longest has {longest}; lower prompt_tokens.min "
                "or take longer texts"
            )
        self._prompt_tokens = prompt_tokens
        self._response_lengths = LengthSampler(response_tokens.min, response_tokens.max)
        self._seed = seed
        self._next = 0
        self._orders: dict[int, npt.NDArray[np.int64]] = {}

    def __len__(self) -> int:
        """Prompts of one epoch: the texts that are long enough."""
        return len(self._usable)

    @property
    def next_draw_index(self) -> int:
        """Where `take` goes on."""
        return self._next

    def prompt_at(self, draw_index: int) -> Prompt:
        """The prompt at a position of the stream, from 0; does not move the stream."""
        if draw_index < 0:
            raise ValueError(f"draw_index={draw_index} is before the start of the stream; count from 0")
        epoch, position = divmod(draw_index, len(self._usable))
        prompt_id = int(self._usable[self._order(epoch)[position]])
        text = self._texts[prompt_id]
        lengths = LengthSampler(self._prompt_tokens.min, min(self._prompt_tokens.max, len(text) - 1))
        num_tokens = lengths.draw(self._seed, _PROMPT_TOKENS, draw_index)
        return Prompt(
            draw_index=draw_index,
            prompt_id=prompt_id,
            token_ids=np.array(text[:num_tokens], dtype=np.int32),
            max_new_tokens=self._response_lengths.draw(self._seed, _RESPONSE_TOKENS, draw_index),
        )

    def take(self, num_prompts: int) -> tuple[Prompt, ...]:
        """The next prompts; the stream moves on behind them."""
        prompts = tuple(self.prompt_at(self._next + offset) for offset in range(num_prompts))
        self._next += num_prompts
        return prompts

    def state_dict(self) -> dict[str, int]:
        """What a checkpoint keeps: the cursor, for the rest follows from the constructor's arguments."""
        return {"next_draw_index": self._next}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Go on where the state was taken; raises ValueError if it holds no legal cursor."""
        cursor = state.get("next_draw_index")
        if not isinstance(cursor, int) or cursor < 0:
            raise ValueError(f"prompt stream state {dict(state)} holds no next_draw_index of 0 or more")
        self._next = cursor

    def _order(self, epoch: int) -> npt.NDArray[np.int64]:
        """The epoch's permutation; the latest two are kept, for a batch may lie on their border."""
        if epoch not in self._orders:
            if len(self._orders) == 2:
                del self._orders[min(self._orders)]
            self._orders[epoch] = permutation(len(self._usable), self._seed, _ORDER, epoch)
        return self._orders[epoch]
