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
