"""What a row of a data source is where it is no plain text: a demonstration, a preference. Imports pydantic only."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from common.config_base import Config


class DemonstrationRows(Config):
    """A prompt and the response that the model shall learn to give; the loss counts on the response only."""

    type: Literal["demonstrations"] = "demonstrations"
    """Tag of the union."""
    prompt_column: str = "prompt"
    """Column of the prompt."""
    response_column: str = "response"
    """Column of the response."""
    messages_column: str | None = None
    """Column of a chat instead: a list of `{"role": ..., "content": ...}`; each turn of the assistant is learned."""
    use_chat_template: bool = True
    """Write prompt and response as a chat where the model's tokenizer has a template; false: one after the other, as
    for a model without one."""

    def column_names(self) -> list[str]:
        """Columns that are read."""
        return [self.prompt_column, self.response_column] if self.messages_column is None else [self.messages_column]

    @model_validator(mode="after")
    def _pair_or_chat(self) -> "DemonstrationRows":
        if self.messages_column is None:
            return self
        for name in ("prompt_column", "response_column"):
            if getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"{name}={getattr(self, name)!r} and messages_column={self.messages_column!r} exclude each other; "
                    "give the columns of prompt and response, or the one of the chat"
                )
        if not self.use_chat_template:
            raise ValueError(
                "use_chat_template=false cannot write the turns of a chat; remove it, or name prompt and response"
            )
        return self


class PreferenceRows(Config):
    """Responses to one prompt that people ranked: a pair, or K of them, the best first."""

    type: Literal["preferences"] = "preferences"
    """Tag of the union."""
    prompt_column: str | None = None
    """Column of the prompt; None: the responses are whole texts."""
    chosen_column: str = "chosen"
    """Column of the better response."""
    rejected_column: str = "rejected"
    """Column of the worse one."""
    margin_column: str | None = None
    """Column of a number: by how much the chosen one is better, in units of the score; None: no margin."""
    ranking_column: str | None = None
    """Column of a list of responses instead, best first; K may differ from row to row (jsonl, json or parquet)."""

    @model_validator(mode="after")
    def _a_margin_is_of_a_pair(self) -> "PreferenceRows":
        if self.ranking_column is not None and self.margin_column is not None:
            raise ValueError(
                f"margin_column={self.margin_column!r} is the margin of a pair, but ranking_column="
                f"{self.ranking_column!r} ranks K responses; leave one of them out"
            )
        return self

    def column_names(self) -> list[str]:
        """Columns that are read."""
        ranked = [self.chosen_column, self.rejected_column] if self.ranking_column is None else [self.ranking_column]
        return [name for name in (self.prompt_column, *ranked, self.margin_column) if name is not None]


class LabelPairRows(Config):
    """Labelled texts, and a recipe that makes preferences of them: derived from labels, not ranked by people.

    A text of a higher class is preferred to one of a lower class with as many words, so that length tells nothing.
    Whoever reads plain or labelled texts from such a source gets those.
    """

    type: Literal["label_pairs"] = "label_pairs"
    """Tag of the union."""
    seed: int = Field(default=0, ge=0, lt=2**31)
    """Names the matching and the noise; they follow from it and from hashes of the texts."""
    length_tolerance: float = Field(default=0.0, ge=0, le=1)
    """Largest difference of words inside a pair, over the shorter text's words; 0: equal numbers of words."""
    noise_fraction: float = Field(default=0.0, ge=0, lt=0.5)
    """Share of the pairs that are turned round, as labellers err: held-out ones too, so that no accuracy of more than
    1 - noise_fraction can be measured."""
    margin_per_class: float = Field(default=0.0, ge=0)
    """Margin of a pair, in units of the score: this times the difference of its classes."""


Rows = Annotated[DemonstrationRows | PreferenceRows | LabelPairRows, Field(discriminator="type")]
