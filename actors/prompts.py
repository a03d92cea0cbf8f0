"""An endless, resumable stream of prompts: the beginnings of tokenised texts, or whole prompts. A prompt follows from
(seed, draw_index) alone, whoever asks for it and when; the only state is the index of the next draw. Knows no tokenizer
and no model.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from common.data_config import LengthRange
from common.errors import DataError
from common.records import Ids, Prompt
from common.seeds import mix
from common.weighted_draws import WeightedDraws

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


@dataclass(frozen=True, slots=True)
class PromptShare:
    """What one data source has of the texts, and how often it is drawn from."""

    name: str
    num_texts: int
    weight: float


class PromptStream:
    """Prompts in an order that goes through all texts once per epoch, in a new permutation each epoch.

    Args:
        texts: [N] token ids of each text, int32, without special tokens where it is cut.
        prompt_tokens: Lengths of prompts. At least one token of a text is never in its prompt, so that a text of L
            tokens gives prompts of at most L - 1; texts of up to `min` tokens are left out.
        response_tokens: Lengths that responses may have, drawn with the prompt.
        seed: Seed of the run.
        whole: [N] true where a text is a prompt as it is; those of more than `prompt_tokens.max` tokens are left out.
            None: all are cut.
        shares: Sources that are drawn from by weight, each through epochs of its own, in the order of their texts;
            none: all texts are one source.
        plain: [N] what scorers read as the prompt, as in `Prompt.text`. None: the ids of each, decoded.

    Raises:
        DataError: no text is of a fitting length, or none of a source's is.
    """

    def __init__(
        self,
        texts: Sequence[Ids],
        *,
        prompt_tokens: LengthRange,
        response_tokens: LengthRange,
        seed: int,
        whole: Sequence[bool] | None = None,
        shares: Sequence[PromptShare] = (),
        plain: Sequence[str | None] | None = None,
    ) -> None:
        self._texts = texts
        self._whole = [False] * len(texts) if whole is None else whole
        self._plain = [None] * len(texts) if plain is None else plain
        fits = [
            1 <= len(text) <= prompt_tokens.max if is_whole else len(text) > prompt_tokens.min
            for text, is_whole in zip(texts, self._whole, strict=True)
        ]
        self.num_too_long = sum(
            len(text) > prompt_tokens.max for text, is_whole in zip(texts, self._whole, strict=True) if is_whole
        )
        """Whole prompts that are left out."""
        self._usable = np.flatnonzero(fits)
        if not self._usable.size:
            raise self._nothing_fits(prompt_tokens)
        self._draws = self._weigh(shares or (PromptShare("all", len(texts), 1.0),), prompt_tokens, seed)
        self._prompt_tokens = prompt_tokens
        self._response_lengths = LengthSampler(response_tokens.min, response_tokens.max)
        self._seed = seed
        self._next = 0

    def __len__(self) -> int:
        """Draws before a text comes again; where all texts are one source, those of fitting length."""
        return len(self._draws)

    @property
    def next_draw_index(self) -> int:
        """Where `take` goes on."""
        return self._next

    def prompt_at(self, draw_index: int) -> Prompt:
        """The prompt at a position of the stream, from 0; does not move the stream."""
        if draw_index < 0:
            raise ValueError(f"draw_index={draw_index} is before the start of the stream; count from 0")
        prompt_id = int(self._usable[self._draws.item_at(draw_index)])
        text = self._texts[prompt_id]
        if self._whole[prompt_id]:
            num_tokens = len(text)
        else:
            lengths = LengthSampler(self._prompt_tokens.min, min(self._prompt_tokens.max, len(text) - 1))
            num_tokens = lengths.draw(self._seed, _PROMPT_TOKENS, draw_index)
        return Prompt(
            draw_index=draw_index,
            prompt_id=prompt_id,
            token_ids=np.array(text[:num_tokens], dtype=np.int32),
            max_new_tokens=self._response_lengths.draw(self._seed, _RESPONSE_TOKENS, draw_index),
            text=self._plain[prompt_id],
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

    def _weigh(self, shares: Sequence[PromptShare], prompt_tokens: LengthRange, seed: int) -> WeightedDraws:
        ends = np.cumsum([share.num_texts for share in shares])
        sizes = np.diff(np.searchsorted(self._usable, ends), prepend=0).tolist()
        for share, size in zip(shares, sizes, strict=True):
            if not size:
                raise DataError(
                    f"none of {share.num_texts} texts of {share.name} gives a prompt of "
                    f"{prompt_tokens.min} to {prompt_tokens.max} tokens; change prompt_tokens, or remove the source"
                )
        return WeightedDraws(sizes, [share.weight for share in shares], seed, _ORDER)

    def _nothing_fits(self, prompt_tokens: LengthRange) -> DataError:
        wholes = sum(self._whole)
        cut = [len(text) for text, is_whole in zip(self._texts, self._whole, strict=True) if not is_whole]
        if wholes and not cut:
            shortest = min(len(text) for text in self._texts)
            return DataError(
                f"none of {wholes} whole prompts fits prompt_tokens.max={prompt_tokens.max}: the shortest has "
                f"{shortest} tokens; raise prompt_tokens.max"
            )
        return DataError(
            f"none of {len(self._texts)} texts is long enough for a prompt: prompt_tokens.min={prompt_tokens.min} "
            f"needs texts of {prompt_tokens.min + 1} tokens or more, the longest has {max(cut, default=0)}; lower "
            "prompt_tokens.min or take longer texts"
        )
