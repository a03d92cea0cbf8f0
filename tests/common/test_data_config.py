"""Data sources as configuration: what fits together and what is refused."""

import pytest
from pydantic import TypeAdapter, ValidationError

from common.data_config import DataSource, FilesSource, InlineSource, LengthRange, PackageSource

SOURCE = TypeAdapter(DataSource)


@pytest.mark.parametrize(
    ("document", "kind"),
    [
        ({"type": "files", "paths": ["a.csv"]}, FilesSource),
        ({"type": "package", "package": "p", "file": "a.csv"}, PackageSource),
        ({"type": "inline", "texts": ["a"]}, InlineSource),
    ],
)
def test_the_tag_chooses_the_source(document, kind):
    assert type(SOURCE.validate_python(document)) is kind


def test_settings_of_another_kind_of_source_are_refused():
    with pytest.raises(ValidationError, match=r"unknown key 'texts': .*legal keys are text_column"):
        SOURCE.validate_python({"type": "files", "paths": ["a.csv"], "texts": ["a"]})


def test_a_source_without_tag_is_refused():
    with pytest.raises(ValidationError, match="'type'"):
        SOURCE.validate_python({"paths": ["a.csv"]})


@pytest.mark.parametrize("document", [{"type": "files", "paths": []}, {"type": "inline", "texts": []}])
def test_a_source_of_nothing_is_refused(document):
    with pytest.raises(ValidationError, match=r"at least (1 item|one text)"):
        SOURCE.validate_python(document)


def test_inline_labels_are_one_per_text():
    with pytest.raises(ValidationError, match="1 labels for 2 texts; give one label per text"):
        InlineSource(texts=["a", "b"], labels=[1])
    assert InlineSource(texts=["a", "b"], labels=[1, 0]).labels == [1, 0]
    assert InlineSource(texts=["a", "b"]).labels is None


def test_where_takes_strings_and_integers_as_they_are():
    source = SOURCE.validate_python({"type": "files", "paths": ["a"], "where": {"source": "imdb", "fold": 3}})
    assert source.where == {"source": "imdb", "fold": 3}
    assert type(source.where["fold"]) is int


def test_one_class_is_no_classification():
    with pytest.raises(ValidationError, match="greater than or equal to 2"):
        InlineSource(texts=["a"], num_labels=1)


def test_a_length_range_may_be_a_single_length():
    assert LengthRange(min=4, max=4).max == 4
    with pytest.raises(ValidationError, match=r"min=5 is above max=4; swap them or make them equal"):
        LengthRange(min=5, max=4)
    with pytest.raises(ValidationError, match="greater than or equal to 1"):
        LengthRange(min=0, max=4)


DEMONSTRATIONS = {"type": "demonstrations"}


@pytest.mark.parametrize(
    ("document", "said"),
    [
        ({"type": "hub", "path": "a", "streaming": True}, "may never end; set take = 10000"),
        ({"type": "inline", "texts": ["a"], "records": [{"prompt": "a"}]}, "1 texts and 1 records"),
        ({"type": "inline", "records": [{"prompt": "a"}]}, "records need rows"),
        ({"type": "inline", "texts": ["a"], "rows": DEMONSTRATIONS}, "rows need records"),
        ({"type": "inline", "records": [{"a": 1}], "rows": DEMONSTRATIONS, "labels": [1]}, "labels and prepare are of"),
        ({"type": "files", "paths": ["a"], "rows": DEMONSTRATIONS, "label_column": "b"}, "label_column is of texts"),
        ({"type": "hub", "path": "a", "rows": DEMONSTRATIONS, "prepare": {"lowercase": True}}, "prepare is of texts"),
        (
            {"type": "hub", "path": "a", "rows": DEMONSTRATIONS | {"messages_column": "m", "prompt_column": "p"}},
            "prompt_column='p' and messages_column='m' exclude each other",
        ),
        (
            {"type": "hub", "path": "a", "rows": DEMONSTRATIONS | {"messages_column": "m", "use_chat_template": False}},
            "cannot write the turns of a chat",
        ),
    ],
)
def test_a_source_that_contradicts_itself_is_refused(document, said):
    with pytest.raises(ValidationError, match=said):
        SOURCE.validate_python(document)


@pytest.mark.parametrize(
    "document",
    [
        {"type": "hub", "path": "a", "name": "b", "take": 3, "streaming": True, "where": {"x": 1}},
        {"type": "hub", "path": "a", "rows": DEMONSTRATIONS | {"messages_column": "m"}},
        {"type": "inline", "records": [{"prompt": "a", "response": ["b", {"c": 1.5}]}], "rows": DEMONSTRATIONS},
    ],
)
def test_a_source_is_read_back_as_it_is_written_out(document):
    source = SOURCE.validate_python(document)
    assert SOURCE.validate_python(source.model_dump()) == source


def test_the_columns_that_are_read_follow_from_the_rows():
    def columns(**settings):
        return SOURCE.validate_python({"type": "hub", "path": "a", "where": {"w": 1}, **settings}).column_names()

    assert columns(label_column="l") == ["text", "l", "w"]
    assert columns(rows=DEMONSTRATIONS) == ["prompt", "response", "w"]
    assert columns(rows=DEMONSTRATIONS | {"messages_column": "m"}) == ["m", "w"]
