"""What a row of a data source is where it is no plain text: a demonstration, a preference. Imports pydantic only."""

from typing import Annotated, Literal

from pydantic import Field

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


Rows = Annotated[DemonstrationRows | PreferenceRows, Field(discriminator="type")]
