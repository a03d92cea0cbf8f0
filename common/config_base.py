"""The base of every configuration class: frozen, closed to unknown keys, documented under each field."""

import difflib
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator


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
