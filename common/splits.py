"""Which documents are held out, and which half they are in, by a hash of each: whatever their order and neighbours."""

import math
from collections.abc import Iterable
from typing import Literal

import numpy as np
import numpy.typing as npt
import xxhash

from common.errors import DataError
from common.seeds import mix

Which = Literal["train", "heldout"]
Half = Literal["all", "a", "b"]

_HELDOUT, _HALF = 0x68656C64, 0x68616C66  # purposes of the split hashes; another number would move every document


def prompt_id(prompt: str) -> int:
    """What a prompt is split by, whatever kind of row it stands in: xxh3-64 of its words, in lower case."""
    return xxhash.xxh3_64_intdigest(f"user\0{normal(prompt)}".encode())


def normal(text: str) -> str:
    """Texts that differ in case and blanks only are the same text."""
    return " ".join(text.lower().split())


def first_held_out(document_ids: Iterable[int]) -> int:
    """Of at least one id, that which is held out at the least share: by it all are held out as soon as any is."""
    return min(document_ids, key=lambda document: (mix(_HELDOUT, document), document))


def rows_of_split(
    document_ids: npt.NDArray[np.uint64], heldout_fraction: float, which: Which = "train", half: Half = "all"
) -> npt.NDArray[np.int64]:
    """Indices of the rows whose document is in a split.

    Args:
        document_ids: [N] a hash of each row's document; rows of one document stay together.
        heldout_fraction: Share of the documents that are held out, in 0 … 1.
        which: The training split or the held-out one.
        half: Both halves of it, or one: `a` and `b` are disjoint, and independent of what is held out.

    Raises:
        DataError: the split is empty.
    """
    if not 0 <= heldout_fraction <= 1:
        raise ValueError(f"heldout_fraction={heldout_fraction} is no share; choose one from 0 to 1")
    documents, where = np.unique(document_ids, return_inverse=True)
    bound = math.floor(heldout_fraction * 2**64)
    keep = np.array([(mix(_HELDOUT, int(d)) < bound) == (which == "heldout") for d in documents], dtype=bool)
    if half != "all":
        keep &= np.array([(mix(_HALF, int(d)) >> 63 == 0) == (half == "a") for d in documents], dtype=bool)
    rows = np.flatnonzero(keep[where])
    if not rows.size:
        raise DataError(
            f"the {which} split (heldout_fraction={heldout_fraction}, half={half!r}) is empty: "
            f"there are only {len(documents)} different documents; add some, or change heldout_fraction"
        )
    return rows
