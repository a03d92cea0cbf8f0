"""Text to ids and back: one place for SFT, reward model, PPO and samples, so that all see the same text."""

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from common.errors import ConfigError
from common.hub import loading
from common.records import Ids

_MARK = "The end."
"""Stands for what an assistant says."""
PAD, UNKNOWN, EOS = "<pad>", "<unk>", "<eos>"
WORD = r"\p{L}+(?:['’]\p{L}+)*|\p{N}+|[^\s\p{L}\p{N}]"
"""A word with its contractions, a number, or one mark."""


def train_word_tokenizer(texts: Iterable[str], *, vocabulary_size: int, max_tokens: int) -> PreTrainedTokenizerFast:
    """A lower-casing word-level tokenizer of the most frequent words.

    Pad, unknown and EOS are three different tokens, and none is added to a text by itself.
    """
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    tokenizer.decoder = decoders.WordPiece(cleanup=True)
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocabulary_size, special_tokens=[PAD, UNKNOWN, EOS], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=EOS,
        model_max_length=max_tokens,
        padding_side="right",
        clean_up_tokenization_spaces=False,
    )


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a model folder or hub name (`name@revision`).

    A missing EOS token is the first that the model's own settings name; a missing pad token becomes the EOS token.
    Masks follow from lengths and never from comparing ids, so that pad and EOS may be one token.

    Raises:
        ConfigError: it cannot be had, or nothing names an EOS token.
    """
    with loading(path) as (name, revision):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    if tokenizer.eos_token_id is None:
        named = [tokenizer.convert_ids_to_tokens(i) for i in configured_eos_ids(path)]
        known = [token for token in named if token is not None]
        if not known:
            raise ConfigError(
                f"neither tokenizer nor configuration of {path} names an EOS token, so no response could ever end; "
                "set eos_token_id in its config.json, or choose another model"
            )
        tokenizer.eos_token = known[0]
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def load_classifier_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """The tokenizer of a classifier, which need not have an EOS token: BERT's has none."""
    with loading(path) as (name, revision):
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision)
    if tokenizer.pad_token_id is None and tokenizer.eos_token_id is None:
        raise ConfigError(f"the tokenizer of {path} has neither a pad nor an EOS token; choose another")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def encode(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int | None = None) -> list[Ids]:
    """Ids of each text, without special tokens, cut at `max_tokens`."""
    encoded = tokenizer(
        list(texts), add_special_tokens=False, truncation=max_tokens is not None, max_length=max_tokens
    )["input_ids"]
    return [np.asarray(ids, dtype=np.int32) for ids in encoded]


def encode_for_classifier(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], max_tokens: int) -> list[Ids]:
    """Ids of each text, cut at `max_tokens`, with the special tokens that its classifier expects, such as [CLS]."""
    encoded = tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
    return [np.asarray(ids, dtype=np.int32) for ids in encoded]


def encode_documents(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_tokens: int,
    drop_unknown: bool,
    groups: npt.NDArray[Any] | None = None,
) -> list[Ids]:
    """Ids of each text with an EOS token at its end where the whole text fitted, as `opening_ids` says at its start.

    Args:
        tokenizer: its EOS token is appended, and its BOS token put first where it does so by itself.
        texts: what the language model shall learn to write.
        max_tokens: longest result, EOS included.
        drop_unknown: leave out texts with a word that the vocabulary lacks.
        groups: [N] texts of one number that follow each other become one passage, as long as it fits; None: each text
            is one.
    """
    eos, opening = np.int32(tokenizer.eos_token_id), opening_ids(tokenizer)
    passages: list[list[Ids]] = []
    length, group = 0, None
    for i, ids in enumerate(encode(tokenizer, texts)):
        if drop_unknown and tokenizer.unk_token_id is not None and (ids == tokenizer.unk_token_id).any():
            continue
        if groups is None or groups[i] != group or length + len(ids) + 1 > max_tokens:
            passages.append([opening])
            length, group = len(opening), None if groups is None else groups[i]
        passages[-1].append(ids)
        length += len(ids)
    return [np.append(np.concatenate(parts), eos)[:max_tokens] for parts in passages]


def decode(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int] | Ids) -> str:
    """Text of ids, special tokens left out.

    So are ids that the tokenizer lacks: a model's vocabulary may be padded beyond it, and such an id may be sampled.
    """
    return str(tokenizer.decode([int(i) for i in ids], skip_special_tokens=True))


def decode_all(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Ids]) -> list[str]:
    """`decode` of each row, in one call where the tokenizer does no more than its backend."""
    lists = [row.tolist() for row in rows]
    if (
        isinstance(tokenizer, PreTrainedTokenizerFast)
        and type(tokenizer)._decode is PreTrainedTokenizerFast._decode
        and not tokenizer.clean_up_tokenization_spaces
    ):
        texts: list[str] = tokenizer.backend_tokenizer.decode_batch(lists, skip_special_tokens=True)
        return texts
    return [decode(tokenizer, row) for row in lists]


def opening_ids(tokenizer: PreTrainedTokenizerBase) -> Ids:
    """The BOS token where the tokenizer puts it before a text by itself, as Llama's does; else nothing."""
    first = tokenizer("a")["input_ids"][:1]
    return np.asarray(first if first == [tokenizer.bos_token_id] else [], dtype=np.int32)


def configured_eos_ids(path: str) -> frozenset[int]:
    """EOS ids of a model's generation_config.json and config.json, each of which may name none, one or several."""
    with loading(path) as (name, revision):
        shape = AutoConfig.from_pretrained(name, revision=revision).get_text_config()
        found = [shape.eos_token_id, _generation_settings(name, revision).eos_token_id]
    lists = [ids if isinstance(ids, list) else [ids] for ids in found if ids is not None]
    return frozenset(int(i) for ids in lists for i in ids)


def _generation_settings(name: str, revision: str | None) -> GenerationConfig:
    try:
        return GenerationConfig.from_pretrained(name, revision=revision)
    except OSError:  # the file is optional
        return GenerationConfig()


def end_of_turn_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The special token that the chat template writes after an assistant's turn; None without a template or token."""
    if not tokenizer.chat_template:
        return None
    turns = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": _MARK}]
    _, mark, after = tokenizer.apply_chat_template(turns, tokenize=False).rpartition(_MARK)
    if not mark:
        return None
    ids = tokenizer(after.strip(), add_special_tokens=False)["input_ids"]
    special = tokenizer.added_tokens_decoder.get(ids[0]) if ids else None
    return int(ids[0]) if special is not None and special.special else None


def tokenizer_eos_ids(tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The tokenizer's EOS id, and the end of a chat turn: by one of them a text that is learned ends."""
    turn = end_of_turn_id(tokenizer)
    return frozenset({int(tokenizer.eos_token_id)} if turn is None else {int(tokenizer.eos_token_id), turn})


def eos_token_ids(path: str, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """The ids that end a response: those that the model's settings name, and the tokenizer's."""
    return configured_eos_ids(path) | tokenizer_eos_ids(tokenizer)


def with_opening(tokenizer: PreTrainedTokenizerBase, rows: Sequence[Ids]) -> list[Ids]:
    """Each text's ids behind what its tokenizer puts first."""
    opening = opening_ids(tokenizer)
    return [np.concatenate([opening, ids]) for ids in rows] if len(opening) else list(rows)
