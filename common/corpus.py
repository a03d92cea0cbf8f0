"""Loads a data source into cleaned texts with labels, and splits them by a stable hash: what every stage learns from.

    files | package | hub ─▶ source_tables ─▶ check text, label ─▶ clean, cut ─▶ Corpus ─▶ split ─▶ Corpus
    inline ────────────────────────────────────────┘

It knows no tokenizer and no model. In-process and quiet; the same source gives the same corpus anywhere.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from common.cleaning import chunks, count_words, holds_any, paragraphs, sentences
from common.corpus_cache import Cells, cache_entry, cached
from common.data_config import DataSource, InlineSource, TableSource, TextPrep
from common.errors import DataError
from common.row_config import LabelPairRows
from common.source_tables import WHERE_IT_IS, content_hashes, read_tables, source_name
from common.splits import Half, Which, rows_of_split

_INTEGER = re.compile(r"[+-]?\d{1,18}")


@dataclass(frozen=True, slots=True)
class Corpus:
    """Texts in the order of their source, N of them."""

    texts: list[str]
    """N cleaned documents or sentences."""
    labels: npt.NDArray[np.int64] | None
    """[N] classes, or None for unlabelled texts; a sentence has its document's."""
    document_ids: npt.NDArray[np.uint64]
    """[N] xxh3-64 of the whole document, cleaned and lower-cased; equal documents and sentences of one share it."""
    fingerprint: str
    """Hash of the content and of the settings that made it; not of paths."""

    def __len__(self) -> int:
        return len(self.texts)


@dataclass(frozen=True, slots=True)
class _Rows:
    """Checked rows before cleaning."""

    texts: list[str]
    labels: list[int] | None


def load_corpus(source: DataSource) -> Corpus:
    """Read, check, clean and cut a data source of texts.

    Raises:
        DataError: a file, package, dataset, column, text or label is not as it should be, or no text is left; the
            message names file, row and column where there is one, and what to change.
    """
    assert source.rows is None or isinstance(source.rows, LabelPairRows), "the configuration names sources of texts"
    settings = source.model_dump_json(exclude={*WHERE_IT_IS, "texts", "labels"})
    if isinstance(source, InlineSource):
        return _corpus(_prepare(_inline_rows(source), source.prepare, name="inline texts"), settings)
    entry = cache_entry(content_hashes(source), settings, __file__)
    return _corpus(cached(entry, lambda: _read(source)), settings)


def _read(source: TableSource) -> Cells:
    return _prepare(_table_rows(source), source.prepare, name=source_name(source))


def _corpus(cells: Cells, settings: str) -> Corpus:
    texts, labels, document_ids = cells["text"], cells.get("label"), cells["document_id"]
    content = "\n".join([settings, *texts, "" if labels is None else " ".join(map(str, labels))])
    return Corpus(texts, labels, document_ids, _digest(content, document_ids.tobytes()))


def split(corpus: Corpus, heldout_fraction: float, which: Which = "train", half: Half = "all") -> Corpus:
    """The documents of a split: arguments and errors as in `common.splits.rows_of_split`."""
    rows = rows_of_split(corpus.document_ids, heldout_fraction, which, half)
    return Corpus(
        texts=[corpus.texts[row] for row in rows],
        labels=None if corpus.labels is None else corpus.labels[rows],
        document_ids=corpus.document_ids[rows],
        fingerprint=_digest(f"{corpus.fingerprint} {heldout_fraction!r} {which} {half}"),
    )


def _inline_rows(source: InlineSource) -> _Rows:
    def locate(row: int) -> str:
        return f"inline texts, row {row}"

    rows = range(1, len(source.texts) + 1)
    labels = None
    if source.labels is not None:
        labels = _checked_labels(source.labels, rows, column="labels", num_labels=source.num_labels, locate=locate)
    return _Rows(source.texts, labels)


def _table_rows(source: TableSource) -> _Rows:
    texts: list[str] = []
    labels: list[int] = []
    for table in read_tables(source):
        values = table.columns[source.text_column]
        texts += _checked_texts(values, table.rows, column=source.text_column, locate=table.locate)
        if source.label_column is not None:
            values = table.columns[source.label_column]
            labels += _checked_labels(
                values, table.rows, column=source.label_column, num_labels=source.num_labels, locate=table.locate
            )
    return _Rows(texts, labels if source.label_column is not None else None)


def _checked_texts(
    values: Sequence[object], rows: Sequence[int], *, column: str, locate: Callable[[int], str]
) -> list[str]:
    texts: list[str] = []
    for row in rows:
        value = values[row - 1]
        if not isinstance(value, str):
            what = "is missing" if value is None else f"is {value!r}, which is no string"
            raise DataError(f"{locate(row)}, column {column!r}: the text {what}; fill it in or delete the row")
        texts.append(value)
    return texts


def _checked_labels(
    values: Sequence[object], rows: Sequence[int], *, column: str, num_labels: int, locate: Callable[[int], str]
) -> list[int]:
    labels: list[int] = []
    for row in rows:
        value = values[row - 1]
        label = _integer(value)
        if label is None or not 0 <= label < num_labels:
            if value is None or value == "":
                what = "the label is missing"
            else:
                what = f"the label {value!r} is {'no integer' if label is None else 'out of range'}"
            raise DataError(
                f"{locate(row)}, column {column!r}: {what}; legal are the integers from 0 to {num_labels - 1} "
                "(num_labels sets how many)"
            )
        labels.append(label)
    return labels


def _integer(value: object) -> int | None:
    """The integer that a cell holds, `1`, `"1"`, `1.0` and true alike; None if it holds none."""
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    if isinstance(value, str) and _INTEGER.fullmatch(value.strip()):
        return int(value)
    return None


def _prepare(rows: _Rows, prep: TextPrep, *, name: str) -> Cells:
    """Clean and cut; texts, labels and document ids."""
    texts: list[str] = []
    origins: list[int] = []
    ids = np.empty(len(rows.texts), dtype=np.uint64)
    for index, raw in enumerate(rows.texts):
        parts = paragraphs(raw)
        document = " ".join(parts)
        ids[index] = xxhash.xxh3_64_intdigest(document.lower().encode())
        units = _units(parts, document, prep)
        texts += units
        origins += [index] * len(units)
    kept = _of_wanted_content(texts, _of_legal_length(texts, prep, name), prep, name)
    texts = [texts[i].lower() if prep.lowercase else texts[i] for i in kept]
    origin = np.array(origins, dtype=np.int64)[kept]
    labels = {} if rows.labels is None else {"label": np.array(rows.labels, dtype=np.int64)[origin]}
    return {"text": texts, "document_id": ids[origin], **labels}


def _units(parts: Sequence[str], document: str, prep: TextPrep) -> list[str]:
    """What one document is cut into."""
    match prep.unit:
        case "document":
            return [document]
        case "sentence":
            return [unit for part in parts for unit in sentences(part)]
        case "chunk":
            return chunks(document, prep.max_words)


def _of_wanted_content(texts: Sequence[str], kept: npt.NDArray[np.int64], prep: TextPrep, name: str) -> list[int]:
    """Indices, out of `kept`, of the units that pass with_any_of and without; raises DataError if none."""
    wanted = frozenset(prep.with_any_of)
    unwanted = re.compile("|".join(map(re.escape, prep.without))) if prep.without else None
    passed = [
        int(i)
        for i in kept
        if (not wanted or holds_any(texts[i], wanted)) and (unwanted is None or not unwanted.search(texts[i]))
    ]
    if not passed:
        raise DataError(
            f"{name}: with_any_of and without remove all {len(kept)} {prep.unit}s that are of legal length; relax them"
        )
    return passed


def _of_legal_length(texts: Sequence[str], prep: TextPrep, name: str) -> npt.NDArray[np.int64]:
    """Indices of the units of min_words … max_words words.

    Raises:
        DataError: none is left; says which step removed the last.
    """
    words = np.fromiter(map(count_words, texts), dtype=np.int64, count=len(texts))
    if not words.any():
        raise DataError(f"{name}: cleaning leaves no word in any text; look at text_column, and at the texts")
    long_enough = words >= prep.min_words
    if not long_enough.any():
        raise DataError(
            f"{name}: min_words={prep.min_words} removes all {len(texts)} {prep.unit}s, whose longest has "
            f"{words.max()} words; set prepare.min_words to that or less"
        )
    kept = long_enough & (words <= prep.max_words)
    if not kept.any():
        raise DataError(
            f"{name}: max_words={prep.max_words} removes all {np.count_nonzero(long_enough)} {prep.unit}s that "
            f"min_words leaves, whose shortest has {words[long_enough].min()} words; set prepare.max_words to at "
            "least that"
        )
    return np.flatnonzero(kept)


def _digest(text: str, data: bytes = b"") -> str:
    """xxh3-128 in hexadecimal digits."""
    state = xxhash.xxh3_128(text.encode())
    state.update(data)
    return state.hexdigest()
