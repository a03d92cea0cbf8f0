import socket
import sys
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pytest

from common.corpus import Corpus, load_corpus
from common.data_config import FilesSource, InlineSource, PackageSource, TextPrep
from common.errors import DataError

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


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "json", "parquet"])
def test_every_file_format_gives_the_same_corpus(tmp_path, suffix):
    corpus = load(write_rows(tmp_path / f"reviews.{suffix}"), label_column="label")
    inline = load_corpus(InlineSource(texts=[text for text, _, _ in ROWS], labels=[label for _, label, _ in ROWS]))
    assert corpus.texts == [text for text, _, _ in ROWS] == inline.texts
    assert corpus.labels.tolist() == [1, 0, 1] == inline.labels.tolist()
    assert corpus.labels.dtype == np.int64
    assert corpus.document_ids.dtype == np.uint64
    assert corpus.document_ids.tolist() == inline.document_ids.tolist()


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("where", [{"source": "a"}, {"label": 1}])
def test_where_keeps_rows_whose_column_equals_the_value(tmp_path, suffix, where):
    corpus = load(write_rows(tmp_path / f"reviews.{suffix}"), where=where)
    assert corpus.texts == ["A fine film.", "Not seen yet."]
    assert corpus.labels is None


def test_a_data_file_inside_a_package_is_found_without_importing_it(tmp_path, monkeypatch):
    (tmp_path / "filmbox" / "data").mkdir(parents=True)
    write(tmp_path / "filmbox" / "__init__.py", "raise RuntimeError('imported')")
    write_rows(tmp_path / "filmbox" / "data" / "all.csv")
    monkeypatch.syspath_prepend(tmp_path)
    corpus = load_corpus(PackageSource(package="filmbox", file="data/all.csv", label_column="label"))
    assert corpus.labels.tolist() == [1, 0, 1]
    assert "filmbox" not in sys.modules


def test_patterns_are_expanded_in_order_and_files_named_twice_are_read_once(tmp_path):
    for name, text in (("b.csv", "second"), ("a.csv", "first"), ("c[1].csv", "third")):
        write(tmp_path / name, f"text\n{text}\n")
    source = FilesSource(paths=[str(tmp_path / "*.csv"), str(tmp_path / "a.csv"), str(tmp_path / "c[1].csv")])
    assert load_corpus(source).texts == ["first", "second", "third"]


def test_csv_cells_that_pandas_takes_for_missing_stay_texts(tmp_path):
    path = write(tmp_path / "x.csv", "\ufefftext,label\nNA,0\nnull,1\n123,1\n".encode())
    assert load(path, label_column="label").texts == ["NA", "null", "123"]


def test_a_changed_file_is_read_again(tmp_path):
    path = write(tmp_path / "x.csv", "text\nbefore\n")
    first = load(path)
    write(path, "text\nand after\n")
    second = load(path)
    assert (first.texts, second.texts) == (["before"], ["and after"])
    assert first.fingerprint != second.fingerprint


def test_loading_is_quiet_and_leaves_the_settings_of_datasets_alone(tmp_path, capfd):
    path = write(tmp_path / "x.csv", "text\nfine\n")
    bars, verbosity = datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()
    load(path)
    error_of(write(tmp_path / "y.csv", 'text\n"open\n'))
    assert (datasets.are_progress_bars_disabled(), datasets.logging.get_verbosity()) == (bars, verbosity)
    assert capfd.readouterr() == ("", "")


def test_the_fingerprint_follows_content_and_settings_but_not_the_path(tmp_path):
    one, other = write_rows(tmp_path / "one.csv"), write_rows(tmp_path / "other.csv")
    plain = load(one).fingerprint
    assert load(other).fingerprint == plain
    assert load(one, prepare=TextPrep(lowercase=True)).fingerprint != plain
    assert load(one, prepare=TextPrep(max_words=99)).fingerprint != plain
    assert load(one, label_column="label").fingerprint != plain


def test_sentences_keep_their_documents_label_and_id():
    source = InlineSource(
        texts=["One is here. Two is here.", "Three is here. Four is here. No."],
        labels=[0, 1],
        prepare=TextPrep(unit="sentence", lowercase=True, min_words=2),
    )
    corpus = load_corpus(source)
    documents = load_corpus(InlineSource(texts=source.texts))
    assert corpus.texts == ["one is here.", "two is here.", "three is here.", "four is here."]
    assert corpus.labels.tolist() == [0, 0, 1, 1]
    assert corpus.document_ids.tolist() == np.repeat(documents.document_ids, 2).tolist()


def test_word_bounds_are_inclusive():
    corpus = load_corpus(
        InlineSource(texts=["a", "a b", "a b c", "a b c d"], prepare=TextPrep(min_words=2, max_words=3))
    )
    assert corpus.texts == ["a b", "a b c"]
