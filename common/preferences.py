"""Loads what is preferred to what, and splits it by a stable hash: what a reward model learns from rankings.

    preferences: source_tables ─▶ check texts, margins ─▶ split by prompt and texts ─▶ Preferences
    label_pairs: corpus ─▶ split by document ─▶ match by length ──────────────────────┘

It knows no tokenizer and no model. The same source gives the same preferences anywhere.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import xxhash

from common.cleaning import count_words
from common.corpus import Corpus, load_corpus, split
from common.data_config import DataSource
from common.errors import DataError
from common.joining import join_response
from common.label_pairs import match_by_length, turned_round
from common.row_config import LabelPairRows, PreferenceRows
from common.source_tables import Table, read_tables
from common.splits import Half, Which, first_held_out, normal, prompt_id, rows_of_split

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Preferences:
    """N rankings of T texts; each text is a response together with its prompt."""

    texts: list[str]
    """T texts as the reward service builds them: what is scored."""
    response_words: Integers
    """[T] words of the responses alone."""
    rankings: list[Integers]
    """N arrays of two or more indices of texts, the best first."""
    margins: npt.NDArray[np.float32]
    """[N] by how much the scores of a ranking's texts should differ at least; 0 where nothing is said."""
    num_left_out: int
    """Responses that equal a better one of their ranking, or labelled texts without a partner."""

    def __len__(self) -> int:
        return len(self.rankings)


@dataclass(frozen=True, slots=True)
class _Ranking:
    """One row, checked."""

    prompt: str
    responses: list[str]
    margin: float


def load_preferences(
    source: DataSource, heldout_fraction: float, which: Which = "train", half: Half = "all"
) -> Preferences:
    """Read, check and split a data source of preferences.

    Rankings that share a prompt or a text, be it by others between them, are always in the same split, and held out if
    any of their prompts is, here or in demonstrations; pairs that are derived from labels are made of texts of one
    split.

    Args:
        source: with rows of type `preferences` or `label_pairs`.
        heldout_fraction: share of the prompts, or of the documents, that is held out.
        which: the training split or the held-out one.
        half: both halves of it, or one.

    Raises:
        DataError: a file, column, text or margin is not as it should be, or nothing is left; names file, row and
            column where there is one, and what to change.
    """
    match source.rows:
        case LabelPairRows() as rows:
            return _derived(split(load_corpus(source), heldout_fraction, which, half), rows)
        case PreferenceRows() as rows:
            rankings = _read(source, rows)
            kept = rows_of_split(_group_ids(rankings), heldout_fraction, which, half)
            return _gathered([rankings[i] for i in kept])
    raise ValueError("the rows of this source are no preferences, which the configuration demands")


def _derived(corpus: Corpus, rows: LabelPairRows) -> Preferences:
    """Pairs of labelled texts."""
    assert corpus.labels is not None, "the configuration demands labels"
    words = np.fromiter(map(count_words, corpus.texts), dtype=np.int64, count=len(corpus))
    higher, lower = match_by_length(corpus.texts, corpus.labels, words, tolerance=rows.length_tolerance, seed=rows.seed)
    differ = np.array([corpus.texts[h] != corpus.texts[low] for h, low in zip(higher, lower, strict=True)], dtype=bool)
    higher, lower = higher[differ], lower[differ]
    if not higher.size:
        raise DataError(
            f"no two of {len(corpus)} texts have different labels and numbers of words within length_tolerance="
            f"{rows.length_tolerance} of each other; raise it, or add texts"
        )
    turned = turned_round(corpus.texts, higher, lower, fraction=rows.noise_fraction, seed=rows.seed + 1)
    margins = rows.margin_per_class * (corpus.labels[higher] - corpus.labels[lower])
    ranked = np.stack([np.where(turned, lower, higher), np.where(turned, higher, lower)], axis=1)
    used, rankings = np.unique(ranked, return_inverse=True)
    return Preferences(
        texts=[corpus.texts[i] for i in used],
        response_words=words[used],
        rankings=list(rankings.reshape(ranked.shape)),
        margins=margins.astype(np.float32),
        num_left_out=len(corpus) - len(used),
    )


def _read(source: DataSource, rows: PreferenceRows) -> list[_Ranking]:
    return [_checked(table, row, rows) for table in read_tables(source) for row in table.rows]


def _checked(table: Table, row: int, rows: PreferenceRows) -> _Ranking:
    """One row of a table, from 1."""
    columns_of, locate = table.columns, table.locate

    def text(value: object, column: str, what: str) -> str:
        if not isinstance(value, str):
            problem = "is missing" if value is None else f"is {value!r}, which is no string"
            raise DataError(f"{table.locate(row)}, column {column!r}: {what} {problem}; fill it in or delete the row")
        return value

    prompt = ""
    if rows.prompt_column is not None:
        prompt = text(columns_of[rows.prompt_column][row - 1], rows.prompt_column, "the prompt")
    if rows.ranking_column is not None:
        column, cell = rows.ranking_column, columns_of[rows.ranking_column][row - 1]
        if not isinstance(cell, list) or len(cell) < 2:
            got = "is missing" if cell is None else f"is {_short(cell)}"
            raise DataError(
                f"{locate(row)}, column {column!r}: the ranking {got}; it must be a list of two or more responses, the "
                "best first, which jsonl, json and parquet can hold"
            )
        responses = [text(value, column, f"response {i}") for i, value in enumerate(cell, start=1)]
        columns = [column] * len(cell)
    else:
        columns = [rows.chosen_column, rows.rejected_column]
        responses = [text(columns_of[column][row - 1], column, "the response") for column in columns]
    for column, response in zip(columns, responses, strict=True):
        if not (prompt + response).strip():
            raise DataError(f"{locate(row)}, column {column!r}: the text is empty; fill it in or delete the row")
    margin = 0.0
    if rows.margin_column is not None:
        margin = _margin(columns_of[rows.margin_column][row - 1], rows.margin_column, row, locate)
    return _Ranking(prompt, responses, margin)


def _margin(value: object, column: str, row: int, locate: Callable[[int], str]) -> float:
    try:
        margin = float(value) if isinstance(value, str | int | float) else math.nan
    except ValueError:
        margin = math.nan
    if not 0 <= margin < math.inf:
        what = "is missing" if value is None else f"is {value!r}"
        raise DataError(
            f"{locate(row)}, column {column!r}: the margin {what}; legal are finite numbers from 0, by how much the "
            "chosen response is better"
        )
    return margin


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:79] + "…"


def _group_ids(rankings: Sequence[_Ranking]) -> npt.NDArray[np.uint64]:
    """[N] one id for all rankings that share a prompt or a text, be it by others between them.

    It is the prompt's, as in demonstrations, and of several prompts that which is held out first, so that a group is
    held out if any of its prompts is; without prompts it is the least hash of the texts.
    """
    parent: dict[int, int] = {}

    def root(key: int) -> int:
        while parent.setdefault(key, key) != key:
            parent[key] = parent[parent[key]]
            key = parent[key]
        return key

    firsts: list[int] = []
    prompts: list[int | None] = []
    for ranking in rankings:
        asked = prompt_id(ranking.prompt) if ranking.prompt.strip() else None
        named = [f"text\0{normal(join_response(ranking.prompt, response))}" for response in ranking.responses]
        keys = [xxhash.xxh3_64_intdigest(name.encode()) for name in named] + ([] if asked is None else [asked])
        roots = {root(key) for key in keys}
        least = min(roots)  # the least of a group stays its root, whatever the order of the rows
        parent.update(dict.fromkeys(roots, least))
        firsts.append(least)
        prompts.append(asked)
    prompts_of: dict[int, set[int]] = {}
    for first, asked in zip(firsts, prompts, strict=True):
        if asked is not None:
            prompts_of.setdefault(root(first), set()).add(asked)
    ids = {group: first_held_out(asked) for group, asked in prompts_of.items()}
    return np.array([ids.get(root(first), root(first)) for first in firsts], dtype=np.uint64)


def _gathered(rows: Sequence[_Ranking]) -> Preferences:
    """Rankings as indices of their texts; of equal responses of one ranking only the best stays."""
    texts: list[str] = []
    words: list[int] = []
    rankings: list[Integers] = []
    margins: list[float] = []
    left_out = 0
    for row in rows:
        responses = list(dict.fromkeys(row.responses))
        if len(responses) < 2:
            left_out += len(row.responses)
            continue
        left_out += len(row.responses) - len(responses)
        rankings.append(np.arange(len(texts), len(texts) + len(responses)))
        margins.append(row.margin)
        texts += [join_response(row.prompt, response) for response in responses]
        words += [count_words(response) for response in responses]
    if not rankings:
        raise DataError(f"all {len(rows)} rankings of a split hold equal responses only; give them different ones")
    return Preferences(texts, np.array(words), rankings, np.array(margins, dtype=np.float32), left_out)
