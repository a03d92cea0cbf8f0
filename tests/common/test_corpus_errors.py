import json
import socket
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from common.corpus import Corpus, load_corpus
from common.data_config import FilesSource, InlineSource, PackageSource, TextPrep
from common.errors import DataError
from common.table_files import check_columns

ROWS = [("A fine film.", 1, "a"), ("A bad film, sadly.", 0, "b"), ("Not seen yet.", 1, "a")]


@pytest.fixture(autouse=True)
def _own_cache_and_no_network(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))

    def refuse(*_):
        raise AssertionError("a corpus was loaded over the network")

    monkeypatch.setattr(socket.socket, "connect", refuse)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def load(path: Path | str, **settings) -> Corpus:
    return load_corpus(FilesSource(paths=[str(path)], **settings))


def error_of(path: Path | str, **settings) -> str:
    with pytest.raises(DataError) as caught:
        load(path, **settings)
    return str(caught.value)


def assert_says(message: str, *parts: object) -> None:
    for part in parts:
        assert str(part) in message, f"{part!r} is not in: {message}"


def write_rows(path: Path) -> Path:
    table = pd.DataFrame(ROWS, columns=["text", "label", "source"])
    match path.suffix:
        case ".csv":
            table.to_csv(path, index=False)
        case ".jsonl":
            table.to_json(path, orient="records", lines=True)
        case ".json":
            table.to_json(path, orient="records")
        case ".parquet":
            table.to_parquet(path)
    return path


# --- errors: files and columns -------------------------------------------------------------------------------------


def test_a_missing_file_is_answered_with_similar_names_in_its_folder(tmp_path):
    write_rows(tmp_path / "reviews.csv")
    assert_says(
        error_of(tmp_path / "review.csv"), tmp_path / "review.csv", "does not exist", "did you mean reviews.csv"
    )


def test_a_missing_folder_is_named_rather_than_its_file(tmp_path):
    (tmp_path / "corpora").mkdir()
    message = error_of(tmp_path / "corpra" / "deep" / "reviews.csv")
    assert_says(message, f"no folder {tmp_path / 'corpra'}", "did you mean corpora")


def test_a_pattern_without_matches_tells_what_the_folder_holds(tmp_path):
    write_rows(tmp_path / "reviews.csv")
    assert_says(error_of(tmp_path / "*.parquet"), "no file matches", "reviews.csv")


def test_an_unknown_suffix_lists_the_legal_ones(tmp_path):
    assert_says(error_of(write(tmp_path / "x.tsv", "text\n")), "x.tsv", "'.tsv'", ".csv, .jsonl, .json, .parquet")


def test_a_folder_in_place_of_a_file_is_explained(tmp_path):
    assert_says(error_of(tmp_path), f"{tmp_path} is a folder", "*.csv")


def test_a_missing_package_names_what_to_install():
    source = PackageSource(package="no_such_pkg", file="x.csv", install="no-such==1.0")
    with pytest.raises(DataError, match=r"'no_such_pkg' is not installed; run: pip install no-such==1\.0"):
        load_corpus(source)
    with pytest.raises(DataError, match="pip install no_such_pkg"):
        load_corpus(PackageSource(package="no_such_pkg.inner", file="x.csv", install="no_such_pkg"))


def test_a_file_that_the_package_does_not_ship_names_similar_ones(tmp_path, monkeypatch):
    (tmp_path / "filmcase").mkdir()
    write(tmp_path / "filmcase" / "__init__.py", "")
    write_rows(tmp_path / "filmcase" / "all.csv")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(DataError, match=r"al\.csv does not exist; did you mean all\.csv"):
        load_corpus(PackageSource(package="filmcase", file="al.csv"))


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json", "parquet"])
@pytest.mark.parametrize(
    "settings", [{"text_column": "sourc"}, {"label_column": "sourc"}, {"where": {"sourc": "a"}}], ids=lambda s: str(*s)
)
def test_a_wrong_column_lists_the_legal_ones(tmp_path, suffix, settings):
    path = write_rows(tmp_path / f"reviews.{suffix}")
    message = error_of(path, **settings)
    assert_says(message, path, "no column 'sourc'", "did you mean 'source'", "'text', 'label', 'source'")


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json", "parquet"])
def test_an_empty_file_is_an_error_that_names_it(tmp_path, suffix):
    path = write(tmp_path / f"none.{suffix}", b"")
    assert_says(error_of(path), path, "is empty")


@pytest.mark.parametrize(("name", "content"), [("x.csv", "text,label\n"), ("x.csv", "\n\n"), ("x.jsonl", "\n \n")])
def test_a_file_without_rows_is_an_error_that_names_it(tmp_path, name, content):
    path = write(tmp_path / name, content)
    assert_says(error_of(path), path, "holds no rows")


def test_a_column_named_twice_is_an_error(tmp_path):
    assert_says(error_of(write(tmp_path / "x.csv", "text,text\na,b\n")), "line 1", "'text' is there twice")


# --- errors: rows --------------------------------------------------------------------------------------------------


def test_broken_utf8_in_csv_names_row_line_byte_and_column(tmp_path):
    content = b'id,text\n1,"two\nlines"\n\n2,caf\xe9 noir\n'
    path = write(tmp_path / "x.csv", content)
    message = error_of(path)
    offset = content.index(b"\xe9")
    assert_says(message, path, "row 2", "line 5", f"byte offset {offset}", "'text'", "0xe9", "save the file as UTF-8")


def test_broken_utf8_in_jsonl_names_line_and_byte_even_in_a_column_that_is_not_read(tmp_path):
    content = b'{"text": "a", "note": ""}\n\n{"text": "b", "note": "\xff"}\n'
    path = write(tmp_path / "x.jsonl", content)
    assert_says(error_of(path), path, "row 2", "line 3", f"byte offset {content.index(0xFF)}")


def test_broken_utf8_across_blocks_and_at_the_end_has_the_right_offset(tmp_path, monkeypatch):
    monkeypatch.setattr("common.table_diagnosis._BLOCK_BYTES", 4)
    content = "text\nÄÖÜ€€€\n".encode()
    assert load(write(tmp_path / "good.csv", content)).texts == ["ÄÖÜ€€€"]
    assert_says(error_of(write(tmp_path / "a.csv", content[:-2])), "row 1", f"byte offset {len(content) - 4}")
    assert_says(error_of(write(tmp_path / "b.csv", content[:12] + b"(x\n")), "row 1", "byte offset 11")


def test_broken_utf8_in_the_header_says_so(tmp_path):
    assert_says(error_of(write(tmp_path / "x.csv", b"t\xe9xt\nfine\n")), "the header", "byte offset 1")


def test_broken_utf8_in_parquet_is_an_error_that_names_the_file(tmp_path):
    column = pa.Array.from_buffers(
        pa.string(), 1, [None, pa.py_buffer(np.array([0, 1], np.int32).tobytes()), pa.py_buffer(b"\xff")]
    )
    pq.write_table(pa.table({"text": column}), tmp_path / "x.parquet")
    assert_says(error_of(tmp_path / "x.parquet"), tmp_path / "x.parquet", "row 1", "'text'", "UTF-8")


@pytest.mark.parametrize(
    ("value", "said"),
    [("", "missing"), ("good", "'good' is no integer"), ("0.5", "'0.5' is no integer"), ("2", "'2' is out of range"),
     ("-1", "'-1' is out of range")],
)  # fmt: skip
def test_an_illegal_label_in_csv_names_file_row_line_column_value_and_legal_range(tmp_path, value, said):
    path = write(tmp_path / "x.csv", f'text,stars\n"one\nfilm",1\n\nanother,{value}\n')
    message = error_of(path, label_column="stars")
    assert_says(message, f"{path}, row 2 (line 5), column 'stars'", said, "integers from 0 to 1")


@pytest.mark.parametrize(
    ("value", "said"),
    [(None, "missing"), ("good", "'good' is no integer"), (0.5, "0.5 is no integer"), (3, "3 is out of range"),
     ([1], "[1] is no integer")],
)  # fmt: skip
def test_an_illegal_label_in_jsonl_names_file_row_line_column_value_and_legal_range(tmp_path, value, said):
    rows = [{"text": "a", "label": 2}, {"text": "b", "label": value}]
    path = write(tmp_path / "x.jsonl", "\n\n".join(map(json.dumps, rows)))
    message = error_of(path, label_column="label", num_labels=3)
    assert_says(message, f"{path}, row 2 (line 3), column 'label'", said, "integers from 0 to 2")


def test_an_illegal_label_in_parquet_names_file_row_and_column(tmp_path):
    path = tmp_path / "x.parquet"
    pd.DataFrame({"text": ["a", "b"], "label": [0, 7]}).to_parquet(path)
    assert_says(error_of(path, label_column="label"), f"{path}, row 2, column 'label'", "7 is out of range", "0 to 1")


def test_an_illegal_inline_label_names_its_row():
    with pytest.raises(DataError, match=r"inline texts, row 2, column 'labels': the label 5 is out of range.*0 to 1"):
        load_corpus(InlineSource(texts=["a", "b"], labels=[1, 5]))


def test_the_second_file_of_a_pattern_is_the_one_named(tmp_path):
    write(tmp_path / "a.csv", "text,label\nx,1\ny,0\n")
    write(tmp_path / "b.csv", "text,label\nx,1\ny,9\n")
    message = error_of(tmp_path / "*.csv", label_column="label")
    assert_says(message, f"{tmp_path / 'b.csv'}, row 2 (line 3), column 'label'")


def test_rows_that_where_leaves_out_need_not_be_legal(tmp_path):
    path = write(tmp_path / "x.csv", "text,label,source\nfine,1,a\n,nine,b\n")
    assert load(path, label_column="label", where={"source": "a"}).texts == ["fine"]


def test_labels_that_are_integers_in_other_clothes_are_taken(tmp_path):
    path = tmp_path / "x.parquet"
    pd.DataFrame({"text": ["a", "b"], "bool": [True, False], "float": [1.0, 0.0]}).to_parquet(path)
    assert load(path, label_column="bool").labels.tolist() == [1, 0]
    assert load(path, label_column="float").labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("name", "content", "where", "said"),
    [
        ("x.jsonl", '{"text": "a"}\n{"text": null}\n', "row 2", "missing"),
        ("x.jsonl", '{"text": "a"}\n{"note": "b"}\n', "row 2", "missing"),
        ("x.jsonl", '{"text": "a"}\n\n{"text": 7}\n', "row 2 (line 3)", "7, which is no string"),
        ("x.json", '[{"text": "a"}, {"text": ["b"]}]', "row 2", "['b'], which is no string"),
        ("x.csv", "text,label\na,1\n,1\n", "row 2 (line 3)", "missing"),
    ],
)
def test_a_text_that_is_missing_or_no_string_names_file_row_and_column(tmp_path, name, content, where, said):
    path = write(tmp_path / name, content)
    assert_says(error_of(path), f"{path}, {where}, column 'text'", said)


def test_a_number_column_of_parquet_is_no_text(tmp_path):
    pd.DataFrame({"text": [1.5, 2.5]}).to_parquet(tmp_path / "x.parquet")
    assert_says(error_of(tmp_path / "x.parquet"), "row 1, column 'text'", "1.5, which is no string")


@pytest.mark.parametrize("tail", ["", "\n" * 3])
def test_an_unparseable_json_line_is_named(tmp_path, tail):
    path = write(tmp_path / "x.jsonl", '{"text": "a"}\n\n{"text": "b",\n{"text": "c"}\n' + tail)
    assert_says(error_of(path), f"{path}, row 2 (line 3)", "not JSON")


def test_json_lines_that_datasets_refuses_are_read_all_the_same(tmp_path):
    path = write(tmp_path / "x.jsonl", '{"text": "a", "extra": 1}\n\n{"text": "b", "extra": "one"}\n{"text": "c"}\n')
    assert load(path).texts == ["a", "b", "c"]


def test_a_json_line_that_is_no_object_is_named(tmp_path):
    path = write(tmp_path / "x.jsonl", '{"text": "a"}\n["b"]\n')
    assert_says(error_of(path), f"{path}, row 2 (line 2)", '["b"] is no JSON object')


def test_a_broken_json_list_is_named_by_line_and_column(tmp_path):
    path = write(tmp_path / "x.json", '[{"text": "a"},\n {"text": "b"]')
    assert_says(error_of(path), f"{path}, line 2, column 14", "not JSON")


@pytest.mark.parametrize("bad_row", [1, 2, 3])
def test_a_csv_row_with_too_many_cells_is_named(tmp_path, bad_row):
    lines = [f"film{row},1" + (",oops" if row == bad_row else "") for row in (1, 2, 3)]
    path = write(tmp_path / "x.csv", "text,label\n" + "\n".join(lines))
    message = error_of(path)
    assert_says(message, f"{path}, row {bad_row} (line {bad_row + 1})", "3 cells where the header has 2")


def test_a_csv_quote_that_never_closes_is_named_by_the_row_where_it_opens(tmp_path):
    path = write(tmp_path / "x.csv", 'text,label\nfine,1\n"bad,0\nlost,1\nlost,1\n')
    assert_says(error_of(path), f"{path}, row 2 (line 3)", "double quote")


def test_a_file_that_is_no_parquet_is_named(tmp_path):
    path = write(tmp_path / "x.parquet", "text,label\na,1\n")
    assert_says(error_of(path), f"{path} is not a parquet file")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"where": {"source": "z"}}, ["where (source = 'z')", "none of 3 rows", "source holds a, b"]),
        ({"prepare": TextPrep(min_words=9)}, ["min_words=9 removes all 3 documents", "longest has 4 words"]),
        ({"prepare": TextPrep(max_words=2)}, ["max_words=2 removes all 3 documents", "shortest has 3 words"]),
    ],
)
def test_an_empty_set_says_which_step_removed_the_last_row(tmp_path, settings, said):
    path = write_rows(tmp_path / "reviews.csv")
    assert_says(error_of(path, **settings), path, *said)


def test_texts_without_words_are_blamed_on_cleaning():
    with pytest.raises(DataError, match="cleaning leaves no word"):
        load_corpus(InlineSource(texts=["<br />", " - "]))


# --- the head of a file alone


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.csv", "text,label\nhello,1\n"),
        ("a.jsonl", '\n{"text": "hello"}\n{"text": "more", "label": 1}\nnot read any more\n'),
        ("a.json", '[\n {"text": "hello"},\n {"label": 1}\n]'),
    ],
)
def test_columns_are_found_without_reading_all(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    check_columns(tmp_path / name, ["text", "label"])
    with pytest.raises(DataError, match=r"has no column 'labels': did you mean 'label'\?|not JSON"):
        check_columns(tmp_path / name, ["text", "labels"])


def test_columns_of_parquet_are_found(tmp_path):
    pd.DataFrame({"text": ["hello"], "label": [1]}).to_parquet(tmp_path / "a.parquet")
    check_columns(tmp_path / "a.parquet", ["text", "label"])
    with pytest.raises(DataError, match="has no column 'source'"):
        check_columns(tmp_path / "a.parquet", ["source"])


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("a.csv", b"", "is empty"),
        ("a.csv", b"words\xff\nhello\n", "byte 0xff is not UTF-8"),
        ("a.parquet", b"no parquet", "is not a parquet file"),
        ("a.jsonl", b"hello\n", "not JSON"),
        ("a.jsonl", b"[1]\n", "is no JSON object"),
    ],
)
def test_a_file_whose_head_is_no_table_is_told(tmp_path, name, content, said):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=said):
        check_columns(tmp_path / name, ["text"])
