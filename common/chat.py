"""Chat messages to ids by the tokenizer's own template: one place for SFT, for prompts of PPO and for chatting."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from transformers import PreTrainedTokenizerBase

from common.errors import ConfigError
from common.records import Ids


class Message(TypedDict):
    """One turn of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str


def plain_text(messages: Sequence[Message]) -> str:
    """A conversation without a template: the contents of its turns, each on a line of its own, without role names.

    It is what stands as the prompt in data without messages, so that both kinds agree. A system message says how to
    answer and is of no turn: it is left out, unless there is nothing else.
    """
    turns = [message for message in messages if message["role"] != "system"]
    return "\n".join(message["content"] for message in turns or messages)


def has_chat_template(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the model was made for conversations; without a template it only continues texts."""
    return bool(tokenizer.chat_template)


def chat_text(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, ask: bool) -> str:
    """A conversation as the model's template writes it, special tokens included; arguments as in `encode_chat`."""
    if not has_chat_template(tokenizer):
        raise ConfigError(
            "these are chat messages, but the model's tokenizer has no chat template; take a model that was made for "
            "conversations, or data with prompt and response columns"
        )
    made = tokenizer.apply_chat_template([dict(m) for m in messages], tokenize=False, add_generation_prompt=ask)
    return str(made)


def encode_chat(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], *, ask: bool) -> Ids:
    """Ids of a conversation as the model's template writes it, special tokens included.

    Args:
        tokenizer: its template is used.
        messages: in order.
        ask: end with what opens the assistant's turn, so that the model goes on with its answer.

    Raises:
        ConfigError: the tokenizer has no chat template.
    """
    ids = tokenizer(chat_text(tokenizer, messages, ask=ask), add_special_tokens=False)[
        "input_ids"
    ]  # the template writes them itself
    return np.asarray(ids, dtype=np.int32)
