"""Demonstrations to ids: what is read, and what of it is learned. One place for SFT and for prompts of PPO.

with a chat template      <user>how was it</user><assistant> good .</assistant>
                                                             ━━━━━━━━━━━━━━━━━━  learned, once per assistant's turn
without                   how was it good . <eos>
                                     ━━━━━━━━━━━━

What opens the assistant's turn belongs to the prompt, and what ends it, the EOS token, is learned. The ids of a prompt
are the same in SFT and in PPO.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from transformers import PreTrainedTokenizerBase

from common.chat import Message, chat_text, encode_chat, has_chat_template, plain_text
from common.errors import ConfigError
from common.joining import cut_joined
from common.records import Ids
from common.row_config import DemonstrationRows
from common.text import encode, tokenizer_eos_ids, with_opening


@dataclass(frozen=True, slots=True)
class Example:
    """What a language model reads."""

    ids: Ids
    """[L] tokens."""
    learned: npt.NDArray[np.bool_]
    """[L] true where the model shall learn to write the token; what is first has nothing that predicts it."""

    def __len__(self) -> int:
        return len(self.ids)


def whole(ids: Ids) -> Example:
    """All of a text is learned."""
    return Example(ids, np.ones(len(ids), dtype=bool))


def encode_prompt(tokenizer: PreTrainedTokenizerBase, chat: Sequence[Message], rows: DemonstrationRows) -> Ids:
    """Ids of all before the last response, and of what opens the assistant's turn where there is a template.

    Args:
        tokenizer: of the policy.
        chat: ends with the assistant's turn.
        rows: says whether a template is used.

    Raises:
        ConfigError: a chat needs a template, and the tokenizer has none.
    """
    if _uses_template(tokenizer, rows):
        return encode_chat(tokenizer, chat[:-1], ask=True)
    head, _ = cut_joined(chat[-2]["content"], chat[-1]["content"])
    return with_opening(tokenizer, encode(tokenizer, [head]))[0]


def prompt_text(tokenizer: PreTrainedTokenizerBase, chat: Sequence[Message], rows: DemonstrationRows) -> str | None:
    """What `common.records.Prompt.text` holds for the prompt of a chat; arguments as in `encode_prompt`."""
    return plain_text(chat[:-1]) if _uses_template(tokenizer, rows) else None


def encode_demonstration(
    tokenizer: PreTrainedTokenizerBase, chat: Sequence[Message], rows: DemonstrationRows
) -> Example:
    """Ids of a conversation with the assistant's turns marked as learned; arguments and errors as in `encode_prompt`.

    Of a turn all up to its EOS token is learned; the last one gets an EOS token where the template writes none.
    """
    if _uses_template(tokenizer, rows):
        ids = _encode_parts(tokenizer, _template_parts(tokenizer, chat))
    else:
        ids = _encode_parts(tokenizer, cut_joined(chat[-2]["content"], chat[-1]["content"]))
        ids[:1] = with_opening(tokenizer, ids[:1])
    ends = tokenizer_eos_ids(tokenizer)
    learned = [np.zeros(len(part), dtype=bool) for part in ids]
    for part, mask in zip(ids[1::2], learned[1::2], strict=True):
        stops = np.flatnonzero([int(i) in ends for i in part])
        mask[: stops[-1] + 1 if stops.size else len(part)] = True
    return _ended(np.concatenate(ids), np.concatenate(learned), tokenizer, ends)


def _ended(
    ids: Ids, learned: npt.NDArray[np.bool_], tokenizer: PreTrainedTokenizerBase, ends: frozenset[int]
) -> Example:
    """Nothing follows the last learned token, which is an EOS token."""
    last = int(np.flatnonzero(learned)[-1]) + 1 if learned.any() else len(ids)
    ids, learned = ids[:last], learned[:last]
    if int(ids[-1]) in ends:
        return Example(ids, learned)
    return Example(np.append(ids, np.int32(tokenizer.eos_token_id)), np.append(learned, True))


def truncate(example: Example, max_tokens: int) -> Example | None:
    """The beginning of it, so that a response loses its end; None where nothing that is learned is left."""
    cut = Example(example.ids[:max_tokens], example.learned[:max_tokens])
    return cut if cut.learned[1:].any() else None


def _uses_template(tokenizer: PreTrainedTokenizerBase, rows: DemonstrationRows) -> bool:
    return rows.messages_column is not None or (rows.use_chat_template and has_chat_template(tokenizer))


def _template_parts(tokenizer: PreTrainedTokenizerBase, chat: Sequence[Message]) -> list[str]:
    """The conversation as text, cut before and after each of the assistant's turns.

    Raises:
        ConfigError: there is no template, or it writes a turn otherwise when it asks for it.
    """
    text = chat_text(tokenizer, chat, ask=False)
    cuts = [0]
    for index in (i for i, message in enumerate(chat) if message["role"] == "assistant"):
        for opened, before in ((True, chat[:index]), (False, chat[: index + 1])):
            beginning = chat_text(tokenizer, before, ask=opened)
            if not text.startswith(beginning):
                raise ConfigError(
                    "the tokenizer's chat template writes the beginning of a conversation otherwise than the whole of "
                    f"it ({beginning[-60:]!r} is not its beginning), so that what the model answers cannot be told "
                    "from what it is asked; choose another model, or prompt and response columns with "
                    "use_chat_template = false"
                )
            cuts.append(len(beginning))
    return [text[start:end] for start, end in itertools.pairwise(cuts)]


def _encode_parts(tokenizer: PreTrainedTokenizerBase, parts: Sequence[str]) -> list[Ids]:
    """Ids of the parts of one text.

    They are those of the whole text where each beginning's ids are the beginning of the whole's. Where a tokenizer's
    merges go across a border, what follows it is encoded by itself: what stands before it must be the prompt's ids.
    """
    beginnings = encode(tokenizer, ["".join(parts[: i + 1]) for i in range(len(parts))])
    text = beginnings[-1]
    if all(np.array_equal(ids, text[: len(ids)]) for ids in beginnings):
        return list(np.split(text, [len(ids) for ids in beginnings[:-1]]))
    return [*_encode_parts(tokenizer, parts[:-1]), encode(tokenizer, parts[-1:])[0]]
