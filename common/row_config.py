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
    """Column of a list of responses instead, best first."""

    def column_names(self) -> list[str]:
        """Columns that are read."""
        pair = [self.chosen_column, self.rejected_column] if self.ranking_column is None else [self.ranking_column]
        return [*pair, *(name for name in (self.prompt_column, self.margin_column) if name is not None)]


Rows = Annotated[DemonstrationRows | PreferenceRows, Field(discriminator="type")]
