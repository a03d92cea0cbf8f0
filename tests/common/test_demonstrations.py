"""Demonstrations: what is read, what is refused, and which split they are in."""

import json
from pathlib import Path

import datasets
import pytest

from common.data_config import FilesSource, InlineSource
from common.demonstrations import Demonstrations, load_demonstrations, split_demonstrations
from common.errors import DataError
from common.row_config import DemonstrationRows

PAIRS = [("what is rain ?", "water ."), ("what is ice ?", "frozen\n\nwater ."), ("what is rain ?", "wet .")]


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


def turns(prompt: str, response: str) -> list[dict]:
    return [{"role": "user", "content": prompt}, {"role": "assistant", "content": response}]


def write(path: Path, rows: list[dict]) -> Path:
    path.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return path


def load(path: Path, **settings) -> Demonstrations:
    where = settings.pop("where", {})
    return load_demonstrations(FilesSource(paths=[str(path)], rows=DemonstrationRows(**settings), where=where))


def load_inline(*records: dict, **settings) -> Demonstrations:
    return load_demonstrations(InlineSource(records=list(records), rows=DemonstrationRows(**settings)))


def test_pairs_and_chats_of_two_turns_are_the_same_and_keep_their_line_breaks(tmp_path):
    pairs = load(write(tmp_path / "p.jsonl", [{"prompt": p, "response": r} for p, r in PAIRS]))
    chats = load(write(tmp_path / "c.jsonl", [{"m": turns(p, r)} for p, r in PAIRS]), messages_column="m")
    assert pairs.chats == chats.chats == [turns(p, r) for p, r in PAIRS]
    assert pairs.document_ids.tolist() == chats.document_ids.tolist()


def test_inline_records_are_read_as_files_are(tmp_path):
    records = [{"prompt": p, "response": r} for p, r in PAIRS]
    inline, file = load_inline(*records), load(write(tmp_path / "p.jsonl", records))
    assert inline.chats == file.chats
    assert inline.document_ids.tolist() == file.document_ids.tolist()


def test_a_second_load_comes_from_the_cache_and_is_equal(tmp_path, monkeypatch):
    path = write(tmp_path / "c.jsonl", [{"m": turns(p, r)} for p, r in PAIRS])
    first = load(path, messages_column="m")
    monkeypatch.setattr("common.source_tables.read_columns", None)
    second = load(path, messages_column="m")
    assert second.chats == first.chats
    assert second.document_ids.tolist() == first.document_ids.tolist()


def test_a_csv_cell_holds_a_chat_as_json(tmp_path):
    cell = json.dumps(turns("hi", "hello")).replace('"', '""')
    (tmp_path / "c.csv").write_text(f'kind,m\na,"{cell}"\nb,broken\n')
    assert load(tmp_path / "c.csv", messages_column="m", where={"kind": "a"}).chats == [turns("hi", "hello")]


def test_what_follows_the_last_answer_is_not_read():
    chat = [{"role": "system", "content": "be kind"}, *turns("hi", "hello"), {"role": "user", "content": "bye"}]
    assert load_inline({"m": chat}, messages_column="m").chats == [chat[:3]]


def test_equal_prompts_share_a_split_whatever_their_responses():
    records = [{"prompt": f"question {i % 20}", "response": f"answer {i}"} for i in range(60)]
    loaded = load_inline(*records)
    parts = {which: split_demonstrations(loaded, 0.4, which) for which in ("train", "heldout")}
    prompts = {which: {chat[0]["content"] for chat in part.chats} for which, part in parts.items()}
    assert prompts["train"] | prompts["heldout"] == {f"question {i}" for i in range(20)}
    assert not prompts["train"] & prompts["heldout"]
    assert sum(map(len, parts.values())) == 60


@pytest.mark.parametrize(
    ("cell", "said"),
    [
        (None, "the chat is None; legal is a list of messages"),
        ([], r"the chat is \[\]; legal is a list"),
        ("[1, ", "the chat is no JSON"),
        ([{"from": "human", "value": "hi"}], "message 1 is .*legal are objects with the keys role and content"),
        ([{"role": "bot", "content": "hi"}], "message 1 has the unknown role 'bot'; legal are system, user, assistant"),
        ([*turns("hi", "hello"), {"role": "user", "content": " "}], "the content of message 3 is empty"),
        ([{"role": "user", "content": ["hi"]}], r"the content of message 1 is \['hi'\], which is no string"),
        ([{"role": "user", "content": "hi"}], "no message is of the assistant"),
        ([{"role": "assistant", "content": "hi"}], "begins with the assistant"),
    ],
)
def test_a_chat_that_cannot_be_learned_is_named(cell, said):
    with pytest.raises(DataError, match=f"inline records, row 2, column 'm': .*{said}"):
        load_inline({"m": turns("hi", "hello")}, {"m": cell}, messages_column="m")


@pytest.mark.parametrize(
    ("row", "column", "what"),
    [
        ({"prompt": "", "response": "b"}, "prompt", "the prompt is empty"),
        ({"prompt": "a", "response": " \n"}, "response", "the response is empty"),
        ({"prompt": "a", "response": None}, "response", "the response is missing"),
        ({"prompt": 3, "response": "b"}, "prompt", "the prompt is 3, which is no string"),
    ],
)
def test_an_empty_prompt_or_response_is_named(row, column, what):
    with pytest.raises(DataError, match=f"inline records, row 2, column '{column}': {what}"):
        load_inline({"prompt": "a", "response": "b"}, row)


def test_an_error_in_a_file_names_file_row_and_line(tmp_path):
    (tmp_path / "p.csv").write_text('prompt,response\n"two\nlines",fine\nsecond,\n')
    with pytest.raises(DataError, match=r"p\.csv, row 2 \(line 4\), column 'response': the response is missing"):
        load(tmp_path / "p.csv")


def test_a_missing_column_lists_those_that_are_there(tmp_path):
    path = write(tmp_path / "p.jsonl", [{"prompt": "a", "respons": "b"}])
    with pytest.raises(DataError, match=r"no column 'response': did you mean 'respons'\? its columns are 'prompt'"):
        load(path)
    with pytest.raises(DataError, match=r"inline records, row 1, has no column 'response'"):
        load_inline({"prompt": "a", "respons": "b"})
