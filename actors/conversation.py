"""What a policy is asked: a conversation by its chat template, or a text that it goes on with, cut to its context.

A model sees its last `context_tokens` only. What does not fit is left out at the beginning, and said: never silently.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from common.chat import Message, encode_chat
from common.errors import DataError
from common.records import Ids
from common.text import encode, opening_ids


@dataclass(frozen=True, slots=True)
class Asked:
    """A prompt, and what became of what was to be asked."""

    ids: Ids
    """[P], at least one."""
    num_dropped: int = 0
    """Messages, or tokens of a text, that were left out at the beginning."""
    unknown: tuple[str, ...] = ()
    """Words that the vocabulary lacks: the model sees a gap in their place."""


def prompt_room(context_tokens: int | None, max_tokens: int) -> int | None:
    """Most tokens of a prompt: an answer shall have its `max_tokens`, or half of the context where that is less."""
    if context_tokens is None:
        return None
    return context_tokens - min(max_tokens, context_tokens // 2)


def ask_chat(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, room: int | None, context_tokens: int | None
) -> Asked:
    """A conversation whose last message is to be answered.

    The oldest exchanges are left out until the rest fits into `room`; a system message at the start, and the last
    message, stay. The last message alone may take all of the context but one token.

    Args:
        tokenizer: with a chat template.
        messages: system or not, then user and assistant in turns, a user's last.
        room: most tokens; None: any number.
        context_tokens: of the model; None: without limit.

    Raises:
        DataError: the last message does not fit into the context, or the template refuses the messages.
    """
    first = 1 if messages[0]["role"] == "system" else 0
    starts = [i for i, m in enumerate(messages) if m["role"] == "user" and i >= first]
    for start in starts:
        ids = _encode(tokenizer, [*messages[:first], *messages[start:]])
        if room is None or len(ids) <= room:
            break
    if context_tokens is not None and len(ids) >= context_tokens:
        raise DataError(
            f"the message has {len(ids)} tokens with all that belongs to it, and the model has a context of "
            f"{context_tokens}; shorten it, or the system message"
        )
    return Asked(ids, start - first, unknown_words(tokenizer, messages[-1]["content"]))


def _encode(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> Ids:
    """Ids, ready to be answered; templates refuse by an error of their own what a model was not made for."""
    try:
        return encode_chat(tokenizer, messages, ask=True)
    except TemplateError as error:
        raise DataError(f"the model's chat template refuses this conversation: {error}") from error


def ask_text(tokenizer: PreTrainedTokenizerBase, text: str, *, room: int | None) -> Asked:
    """A text that is to be continued, encoded as prompts of PPO are; of a long one, the end.

    Raises:
        DataError: there is nothing to go on from.
    """
    ids = encode(tokenizer, [text])[0]
    if not len(ids):
        raise DataError("there is no word to go on from; write the beginning of a text")
    opening = opening_ids(tokenizer)
    dropped = 0 if room is None else max(0, len(opening) + len(ids) - room)
    return Asked(np.concatenate([opening, ids[dropped:]]), dropped, unknown_words(tokenizer, text))


def unknown_words(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[str, ...]:
    """Words of a text that the vocabulary lacks, each once; none where every text has ids, as with bytes."""
    if tokenizer.unk_token_id is None or not tokenizer.is_fast:
        return ()
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    unknown = np.asarray(encoded["input_ids"]) == tokenizer.unk_token_id
    spans = [span for span, is_unknown in zip(encoded["offset_mapping"], unknown, strict=True) if is_unknown]
    return tuple(dict.fromkeys(text[start:end] for start, end in spans))
