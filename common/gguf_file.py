"""GGUF files: found, checked, and turned once into a plain Hugging Face folder. The reading is that of `transformers`.

The file's metadata are read value by value, tokens included, which takes seconds; so all roles load the folder.
"""

import contextlib
import functools
import io
import os
import shutil
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    PretrainedConfig,
    PreTrainedTokenizerBase,
)
from transformers.integrations.gguf import read_gguf_metadata
from transformers.utils import is_gguf_available

from common.errors import ConfigError
from common.model_config import GgufModel
from common.modeling import name_ends
from common.records import Progress, StageResult
from common.table_files import file_of_package
from common.text import load_tokenizer

MAGIC = b"GGUF"
EOS_KEY = "tokenizer.ggml.eos_token_id"


def find_gguf(model: GgufModel) -> Path:
    """The file that the configuration names.

    Raises:
        ConfigError: there is none, or it is no GGUF file, or the package that reads it is not installed.
        DataError: the package that ships it is not installed (names what to install), or holds no such file.
    """
    if model.path is not None:
        path = Path(model.path)
    else:
        assert model.package is not None, "the configuration demands one of the two ways"
        assert model.file is not None, "the configuration demands both"
        path = file_of_package(model.package, model.file, model.install)
    if not path.is_file():
        raise ConfigError(f"model.path={model.path!r} is no file; name a GGUF file")
    with path.open("rb") as file:
        found = file.read(len(MAGIC))
    if found != MAGIC:
        raise ConfigError(f"{path} is no GGUF file: it begins with {found!r} and not with {MAGIC!r}")
    if not is_gguf_available():
        raise ConfigError(f"{path} needs the package `gguf` to be read; run: pip install 'minichatgpt[gguf]'")
    return path.absolute()


@functools.cache
def gguf_shape(path: Path) -> PretrainedConfig:
    """The shape of the model in a GGUF file, from its metadata alone.

    Raises:
        ConfigError: transformers cannot read the file, or its model has no EOS token.
    """
    with _reading(path):
        metadata, _ = read_gguf_metadata(str(path))
        shape = AutoConfig.from_pretrained(str(path.parent), gguf_file=path.name)
    if EOS_KEY not in metadata:  # the shape then has its architecture's default
        raise ConfigError(f"{path} names no EOS token ({EOS_KEY}), so no response could ever end; choose another model")
    return shape


def gguf_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """The tokenizer in a GGUF file, in seconds.

    Raises:
        ConfigError: transformers cannot read the file.
    """
    with _reading(path):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    return tokenizer


def import_gguf(path: Path, folder: Path) -> Iterator[Progress | StageResult]:
    """Unpack every weight to float32 and leave model, tokenizer and chat template in `folder`, whole or not at all.

    Args:
        path: the GGUF file.
        folder: in Hugging Face's format; replaced.

    Yields:
        Progress, and last a StageResult with the number of parameters.
    """
    start = time.perf_counter()
    yield Progress(0, 4, "reading the shape")
    gguf_shape(path)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    yield Progress(1, 4, "reading the tokenizer")
    gguf_tokenizer(path).save_pretrained(partial)
    yield Progress(2, 4, "unpacking the weights")
    with _reading(path), contextlib.redirect_stderr(io.StringIO()):  # a bar that nothing else turns off
        model = AutoModelForCausalLM.from_pretrained(
            str(path.parent),
            gguf_file=path.name,
            dtype=torch.float32,
            quantization_config=GgufConfig(dequantize=True),  # else the result counts as quantized, and is not saved
        )
    yield Progress(3, 4, "writing the folder")
    model.save_pretrained(partial)
    name_ends(model, load_tokenizer(str(partial)))
    model.generation_config.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)
    yield Progress(4, 4, "done")
    parameters = sum(p.numel() for p in model.parameters())
    yield StageResult({"parameters": parameters}, {"total": time.perf_counter() - start})


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, NotImplementedError, OSError, struct.error) as error:
        first = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        raise ConfigError(
            f"transformers cannot load {path} ({first}); take a whole file of an architecture that it knows in this "
            "format, or the model's folder in Hugging Face's format"
        ) from error
