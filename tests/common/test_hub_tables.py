"""Datasets of the hub, read from folders that are laid out like them; and what is said where there is no network."""

import json
import os
from pathlib import Path

import datasets
import httpx2
import pytest

from common.corpus import load_corpus
from common.data_config import FilesSource, HubSource
from common.demonstrations import load_demonstrations
from common.errors import DataError
from common.hub_tables import check_hub_columns, hub_version, read_hub_columns
from common.row_config import DemonstrationRows
from common.source_tables import content_hashes

COMMIT = "e6281661ce1c48d982bc483cf8a173c1bbeb5d31"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path_factory.mktemp("cache"))


@pytest.fixture
def repository(tmp_path) -> Path:
    """Two splits, and a subset of its own, as a repository without a loading script describes them."""
    folder = tmp_path / "reviews"
    folder.mkdir()
    for split, count in (("train", 6), ("test", 3)):
        rows = [{"text": f"{split} text {i}", "label": i % 2, "lang": "en" if i < 4 else "de"} for i in range(count)]
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    chats = [{"m": [{"role": "user", "content": f"q {i}"}, {"role": "assistant", "content": "a"}]} for i in range(3)]
    (folder / "chats.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in chats))
    (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: plain\n  default: true\n  data_files:\n  - {split: train, path: train.jsonl}\n"
        "  - {split: test, path: test.jsonl}\n- config_name: chats\n  data_files: chats.jsonl\n---\n"
    )
    return folder


def source(path: Path | str, **settings) -> HubSource:
    return HubSource(path=str(path), **settings)


@pytest.mark.parametrize("streaming", [{}, {"streaming": True, "take": 100}])
def test_a_dataset_gives_the_corpus_that_its_file_gives(repository, streaming):
    settings = {"label_column": "label", "where": {"lang": "en"}}
    corpus = load_corpus(source(repository, **settings, **streaming))
    file = load_corpus(FilesSource(paths=[str(repository / "train.jsonl")], **settings))
    assert corpus.texts == file.texts == [f"train text {i}" for i in range(4)]
    assert corpus.labels.tolist() == file.labels.tolist() == [0, 1, 0, 1]
    assert corpus.document_ids.tolist() == file.document_ids.tolist()


def test_split_and_subset_are_taken_by_name(repository):
    assert load_corpus(source(repository, split="test")).texts == [f"test text {i}" for i in range(3)]
    assert load_corpus(source(repository, split="train[:2]")).texts == ["train text 0", "train text 1"]
    rows = DemonstrationRows(messages_column="m")
    assert len(load_demonstrations(source(repository, name="chats", rows=rows))) == 3


@pytest.mark.parametrize("streaming", [False, True])
def test_take_counts_rows_before_where_chooses(repository, streaming):
    chosen = source(repository, take=5, streaming=streaming, where={"lang": "de"})
    assert load_corpus(chosen).texts == ["train text 4"]


@pytest.mark.parametrize("streaming", [False, True])
def test_an_error_names_dataset_row_and_column(repository, streaming):
    """Row 5 is the first that `where` keeps."""
    with pytest.raises(DataError, match=r"reviews, split train, row 5, column 'lang': the label 'de' is no integer"):
        load_corpus(source(repository, label_column="lang", take=6, streaming=streaming, where={"lang": "de"}))


@pytest.mark.parametrize("streaming", [False, True])
def test_a_missing_column_lists_those_that_are_there(repository, streaming):
    with pytest.raises(
        DataError, match=r"split train has no column 'txt': did you mean 'text'\? its columns are 'text'"
    ):
        load_corpus(source(repository, text_column="txt", take=6, streaming=streaming))


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"split": "valid"}, r'cannot read .*reviews, split valid: .*"valid".*tried the folder'),
        ({"name": "plane"}, r"cannot read .*reviews \(plane\), split train: .*'plane' not found.*plain"),
    ],
)
def test_a_missing_split_or_subset_names_those_that_are_there(repository, settings, said):
    with pytest.raises(DataError, match=said):
        load_corpus(source(repository, **settings))


def test_a_folder_without_data_is_named(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match=r"empty, split train: .*data files; tried the folder"):
        load_corpus(source(tmp_path / "empty"))


# --- without network (HF_HUB_OFFLINE is set in tests) ----------------------------------------------------------------


@pytest.mark.parametrize("look", [load_corpus, hub_version, lambda s: check_hub_columns(s, ["text"])])
def test_without_network_the_error_says_what_was_tried_and_what_to_do(look):
    with pytest.raises(DataError, match=r"cannot read stanfordnlp/imdb@main, split train") as caught:
        look(source("stanfordnlp/imdb", revision="main"))
    for part in (str(datasets.config.HF_DATASETS_CACHE), "HF_HUB_OFFLINE is set; unset it", "a folder of its files"):
        assert part in str(caught.value)


def test_a_hub_that_cannot_be_reached_is_told_from_one_that_is_not_asked(monkeypatch):
    def fail(*_, **__):
        raise httpx2.ConnectError("no route to host")

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"no route to host; tried the hub \(https.*HF_HUB_OFFLINE=1 spares"):
        read_hub_columns(source("stanfordnlp/imdb"), ["text"])


def test_a_dataset_that_the_hub_lacks_is_told_from_a_hub_that_is_away(monkeypatch):
    def fail(*_, **__):
        raise datasets.exceptions.DatasetNotFoundError("Dataset 'stanfordnlp/imbd' doesn't exist on the Hub")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    with pytest.raises(DataError, match=r"doesn't exist on the Hub; tried the hub; check path.*hf auth login"):
        read_hub_columns(source("stanfordnlp/imbd"), ["text"])


# --- which version ---------------------------------------------------------------------------------------------------


def test_the_version_of_a_folder_follows_from_its_contents_wherever_and_whenever_they_were_written(repository):
    before = content_hashes(source(repository))
    os.utime(repository / "train.jsonl", (1, 1))
    moved = repository.rename(repository.parent / "moved")
    assert content_hashes(source(moved)) == before
    assert content_hashes(source(moved, take=2)) != before
    assert content_hashes(source(moved, split="test")) != before
    assert content_hashes(source(moved, streaming=True, take=2)) == content_hashes(source(moved, take=2))
    (moved / "train.jsonl").write_text('{"text": "other"}\n')
    assert content_hashes(source(moved)) != before


def test_a_whole_commit_is_its_own_version_and_nobody_is_asked(monkeypatch):
    monkeypatch.setattr(datasets, "load_dataset_builder", None)
    pinned = source("stanfordnlp/imdb", revision=COMMIT)
    assert hub_version(pinned) == COMMIT
    check_hub_columns(pinned, ["text"])


def test_a_branch_is_resolved_once_a_process_and_nothing_is_downloaded(monkeypatch):
    asked = []

    class Builder:
        hash = COMMIT

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda *a, **k: asked.append((a, k)) or Builder())
    monkeypatch.setattr(datasets, "load_dataset", None)
    branch = source("somebody/asked-once", name="sub", revision="branch")
    assert [hub_version(branch), hub_version(branch)] == [COMMIT, COMMIT]
    assert asked == [(("somebody/asked-once", "sub"), {"revision": "branch"})]


def test_prepared_texts_of_a_commit_need_no_dataset_again(repository, monkeypatch):
    """Streamed rows too: `datasets` keeps none of those."""
    load = datasets.load_dataset
    monkeypatch.setattr(datasets, "load_dataset", lambda path, *a, revision, **k: load(str(repository), *a, **k))
    pinned = source("somebody/reviews", revision=COMMIT, streaming=True, take=3)
    first = load_corpus(pinned)
    monkeypatch.setattr(datasets, "load_dataset", None)
    assert load_corpus(pinned).texts == first.texts
