"""Loads demonstrations: prompts with the responses that a model shall learn to give, or chats. Knows no tokenizer.

files | package | hub | inline ─▶ source_tables ─▶ check ─▶ Demonstrations ─▶ split ─▶ Demonstrations
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from common.chat import Message, plain_text
from common.corpus_cache import Cells, cache_entry, cached
from common.data_config import DataSource, InlineSource
from common.errors import DataError
from common.row_config import DemonstrationRows
from common.source_tables import WHERE_IT_IS, Table, content_hashes, read_tables
from common.splits import Which, prompt_id, rows_of_split

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True, slots=True)
class Demonstrations:
    """Conversations in the order of their source, N of them; a prompt with its response is one of two turns."""

    chats: list[list[Message]]
    """N conversations of two turns or more; each ends with the assistant's turn and does not begin with it."""
    rows: DemonstrationRows
    """How they are written."""
    document_ids: npt.NDArray[np.uint64]
    """[N] `prompt_id` of what stands before the first response; equal prompts share it, whatever their responses, and
    preferences of the same prompt do."""

    def __len__(self) -> int:
        return len(self.chats)


def load_demonstrations(source: DataSource) -> Demonstrations:
    """Read and check a data source of demonstrations.

    Raises:
        DataError: a file, package, dataset, column, prompt, response or message is not as it should be; the message
            names file, row and column, and what to change.
    """
    rows = source.rows
    assert isinstance(rows, DemonstrationRows), "the configuration names sources of demonstrations here"
    if isinstance(source, InlineSource):
        cells = _prepare(source, rows)
    else:
        entry = cache_entry(content_hashes(source), source.model_dump_json(exclude={*WHERE_IT_IS}), __file__)
        cells = cached(entry, lambda: _prepare(source, rows))
    chats = [
        [Message(role=role, content=content) for role, content in zip(roles, contents, strict=True)]
        for roles, contents in zip(cells["roles"], cells["contents"], strict=True)
    ]
    return Demonstrations(chats, rows, cells["document_id"])


def split_demonstrations(demonstrations: Demonstrations, heldout_fraction: float, which: Which) -> Demonstrations:
    """Those whose prompt's hash puts them into a split; arguments and errors as in `rows_of_split`."""
    kept = rows_of_split(demonstrations.document_ids, heldout_fraction, which)
    return Demonstrations(
        [demonstrations.chats[row] for row in kept], demonstrations.rows, demonstrations.document_ids[kept]
    )


def _prepare(source: DataSource, rows: DemonstrationRows) -> Cells:
    chats = [chat for table in read_tables(source) for chat in _chats(table, rows)]
    return {
        "roles": [[message["role"] for message in chat] for chat in chats],
        "contents": [[message["content"] for message in chat] for chat in chats],
        "document_id": np.array([_document_id(chat) for chat in chats], dtype=np.uint64),
    }


def _document_id(chat: Sequence[Message]) -> int:
    roles = [message["role"] for message in chat]
    return prompt_id(plain_text(chat[: roles.index("assistant")]))


@dataclass(frozen=True, slots=True)
class _Cell:
    """One cell of a table; where it stands is worked out only for an error."""

    table: Table
    row: int
    column: str

    @property
    def value(self) -> Any:
        return self.table.columns[self.column][self.row - 1]

    def error(self, what: str) -> DataError:
        return DataError(f"{self.table.locate(self.row)}, column {self.column!r}: {what}")


def _chats(table: Table, rows: DemonstrationRows) -> list[list[Message]]:
    if rows.messages_column is not None:
        return [_chat(_Cell(table, row, rows.messages_column)) for row in table.rows]
    return [
        [
            Message(role=role, content=_filled(cell.value, cell, what))
            for role, what, cell in (
                ("user", "the prompt", _Cell(table, row, rows.prompt_column)),
                ("assistant", "the response", _Cell(table, row, rows.response_column)),
            )
        ]
        for row in table.rows
    ]


def _filled(value: object, cell: _Cell, what: str) -> str:
    """A text with something in it."""
    if isinstance(value, str) and value.strip():
        return value
    if value is None or isinstance(value, str):
        raise cell.error(f"{what} is {'missing' if value is None else 'empty'}; fill it in or delete the row")
    raise cell.error(f"{what} is {_short(value)}, which is no string; write it as text")


def _chat(cell: _Cell) -> list[Message]:
    """Messages up to the last of the assistant; a string is read as JSON, for csv files hold no lists."""
    value = cell.value
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError as error:
            raise cell.error(f"the chat is no JSON ({error.msg} at character {error.pos + 1}); mend it") from error
    if not isinstance(value, list) or not value:
        raise cell.error(
            f"the chat is {_short(value)}; legal is a list of messages, as "
            '[{"role": "user", "content": "…"}, {"role": "assistant", "content": "…"}]'
        )
    chat = [_message(message, number, cell) for number, message in enumerate(value, start=1)]
    roles = [message["role"] for message in chat]
    if "assistant" not in roles:
        raise cell.error("no message is of the assistant, so that there is nothing to learn; add its answer")
    if roles[0] == "assistant":
        raise cell.error(
            "the chat begins with the assistant, so that it has no prompt; begin with the user or a system"
        )
    return chat[: len(roles) - roles[::-1].index("assistant")]


def _message(value: object, number: int, cell: _Cell) -> Message:
    if not isinstance(value, dict) or "role" not in value or "content" not in value:
        raise cell.error(f"message {number} is {_short(value)}; legal are objects with the keys role and content")
    role = value["role"]
    if role not in ROLES:
        raise cell.error(f"message {number} has the unknown role {role!r}; legal are {', '.join(ROLES)}")
    return Message(role=role, content=_filled(value["content"], cell, f"the content of message {number}"))


def _short(value: object) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else shown[:79] + "…"
