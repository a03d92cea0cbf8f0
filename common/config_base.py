"""The base of every configuration class: frozen, closed to unknown keys, documented under each field."""

import difflib
from typing import Any, Final, Self

from pydantic import BaseModel, ConfigDict, model_validator


class Changeable:
    """Marks a setting that says where, how many, how long or how often, and changes no result."""


CHANGEABLE: Final = Changeable()
"""As in `workers: Annotated[int, CHANGEABLE]`: a run may go on, and a finished stage stands, with another value."""


class Config(BaseModel):
    """Frozen pydantic model; a misspelt key is an error that names the legal ones."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @model_validator(mode="before")
    @classmethod
    def _name_the_legal_keys(cls, data: Any) -> Any:
        if isinstance(data, dict):
            legal = list(cls.model_fields)
            for key in data:
                if key not in legal:
                    close = difflib.get_close_matches(str(key), legal, n=1)
                    hint = f"did you mean {close[0]!r}? " if close else ""
                    raise ValueError(f"unknown key {key!r}: {hint}legal keys are {', '.join(legal)}")
        return data

    def resolved(self) -> Self:
        """With plain values where a setting follows from another one."""
        return self


def settings_that_matter(config: Config) -> dict[str, Any]:
    """The settings on which results depend, as JSON-able values: all but those marked CHANGEABLE, at every depth."""
    config = config.resolved()
    dumped = config.model_dump(mode="json")
    for name, field in type(config).model_fields.items():
        value = getattr(config, name)
        if any(mark is CHANGEABLE for mark in field.metadata):
            del dumped[name]
        elif isinstance(value, Config):
            dumped[name] = settings_that_matter(value)
        elif isinstance(value, list):
            pairs = zip(value, dumped[name], strict=True)
            dumped[name] = [settings_that_matter(item) if isinstance(item, Config) else plain for item, plain in pairs]
    return dumped
