"""What a language model learns from a data source: texts, or demonstrations of which the responses count."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from common.config import LanguageModelTraining
from common.corpus import Corpus, load_corpus, split
from common.data_config import DataSource
from common.demonstrations import Demonstrations, load_demonstrations, split_demonstrations
from common.dialogue import Example, encode_demonstration, truncate, whole
from common.errors import DataError
from common.padding import pad_right
from common.row_config import DemonstrationRows
from common.splits import Which
from common.text import encode, encode_documents, tokenizer_eos_ids

Loaded = Corpus | Demonstrations


@dataclass(frozen=True, slots=True)
class Examples:
    """What is left of one source, and what is not."""

    items: list[Example]
    left_out: int = 0
    """Texts or demonstrations with a word outside of the vocabulary, where such are not wanted."""
    too_long: int = 0
    """Demonstrations whose prompt leaves no room for a response: they are left out."""
    responses_cut: int = 0
    """Demonstrations whose last response, or what of it fits, has lost its end: it is not taught to end there."""

    def __len__(self) -> int:
        return len(self.items)


def load_source(source: DataSource) -> Loaded:
    """Texts or demonstrations, as the source has them."""
    return load_demonstrations(source) if isinstance(source.rows, DemonstrationRows) else load_corpus(source)


def split_source(loaded: Loaded, heldout_fraction: float, which: Which) -> Loaded:
    """The part of a split."""
    if isinstance(loaded, Demonstrations):
        return split_demonstrations(loaded, heldout_fraction, which)
    return split(loaded, heldout_fraction, which)


def encode_source(
    name: str, loaded: Loaded, tokenizer: PreTrainedTokenizerBase, table: LanguageModelTraining
) -> Examples:
    """Examples of at least one learned token, cut at `max_tokens`.

    Raises:
        DataError: nothing is left; says why.
    """
    if isinstance(loaded, Demonstrations):
        return _demonstrations(name, loaded, tokenizer, table)
    documents = [ids for ids in _documents(loaded, tokenizer, table) if len(ids) > 1]
    left_out = _num_unknown(loaded.texts, tokenizer) if table.drop_unknown else 0
    return Examples([whole(ids) for ids in documents], left_out=left_out)


def _demonstrations(
    name: str, loaded: Demonstrations, tokenizer: PreTrainedTokenizerBase, table: LanguageModelTraining
) -> Examples:
    items: list[Example] = []
    left_out, too_long, responses_cut = 0, 0, 0
    unknown = None if tokenizer.unk_token_id in tokenizer_eos_ids(tokenizer) else tokenizer.unk_token_id
    for chat in loaded.chats:
        example = encode_demonstration(tokenizer, chat, loaded.rows)
        if table.drop_unknown and unknown is not None and (example.ids == unknown).any():
            left_out += 1
            continue
        kept = truncate(example, table.max_tokens)
        if kept is None:
            too_long += 1
            continue
        responses_cut += len(kept) < len(example)
        items.append(kept)
    if not items:
        raise DataError(
            f"no demonstration of {name} is left to train on: {too_long} have a prompt of max_tokens="
            f"{table.max_tokens} tokens or more, and {left_out} a word outside of the vocabulary of {len(tokenizer)}; "
            "raise max_tokens, or set drop_unknown = false"
        )
    return Examples(items, left_out, too_long, responses_cut)


def _documents(
    corpus: Corpus, tokenizer: PreTrainedTokenizerBase, table: LanguageModelTraining
) -> list[npt.NDArray[np.int32]]:
    """Ids of each text, or of each passage where texts are joined."""
    texts: list[str] = corpus.texts
    groups: npt.NDArray[Any] | None = None
    match table.join:
        case "document":
            groups = corpus.document_ids
        case "label":
            if corpus.labels is None:
                raise DataError('join = "label" needs labels; set label_column of the data source, or join = "none"')
            order = np.argsort(corpus.labels, kind="stable")
            texts, groups = [texts[i] for i in order], corpus.labels[order]
    return encode_documents(
        tokenizer, texts, max_tokens=table.max_tokens, drop_unknown=table.drop_unknown, groups=groups
    )


def _num_unknown(texts: Sequence[str], tokenizer: PreTrainedTokenizerBase) -> int:
    """How many texts have a word outside of the vocabulary."""
    return sum(tokenizer.unk_token_id in ids for ids in encode(tokenizer, texts))


def pad_examples(examples: Sequence[Example], device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Examples to a batch.

    Returns:
        ids [B, T] int64, lengths [B] int64, and learned [B, T] bool, false in the padding.
    """
    ids, lengths = pad_right([example.ids for example in examples], 0, device)
    learned = np.zeros(ids.shape, dtype=bool)
    for row, example in zip(learned, examples, strict=True):
        row[: len(example)] = example.learned
    return ids, lengths, torch.from_numpy(learned).to(device)
