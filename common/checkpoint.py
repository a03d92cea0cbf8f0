"""One checkpoint: what lies in its folder, how it is written, and how it is known to be whole. No pickle.

    step_000012/
      learner.safetensors   weights, value head, optimizer state     ┐ the shard: written by the learner, where the
      learner.json          step, lineage, controller, optimizers    ┘ data is
      state.json            settings, prompt cursor, ledger            written by the driver
      manifest.json         sizes and xxh3-128 of the others           written by the driver, last

A folder without a manifest is no checkpoint, whatever else lies in it. Nothing is unpickled: a checkpoint from
elsewhere cannot run code. Which checkpoints there are, and which go, is decided in `checkpoint_store.py`.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError
from safetensors.torch import load_file, save_file
from torch import Tensor

from common.errors import CheckpointError
from common.storage import Folder, StoredFile

TENSORS, LEARNER, STATE, MANIFEST = "learner.safetensors", "learner.json", "state.json", "manifest.json"
SHARD = (TENSORS, LEARNER)
FORMAT = 2
"""Raise it whenever older checkpoints cannot be read any more."""


@dataclass(frozen=True, slots=True)
class ShardFiles:
    """What the learner left in a checkpoint's folder: it was read back, and was as it should be."""

    files: Mapping[str, StoredFile]
    """By name."""


class Manifest(BaseModel):
    """`manifest.json`, but for the hash of itself that stands in it too."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    format: int
    step: int = Field(ge=0)
    """Updates behind the weights."""
    lineage: int
    """Lineage of the weights; a later one was written later."""
    score: float | None
    """What `keep_best` goes by; null where nothing was measured."""
    written_at: float
    """When it was committed, in seconds since 1970."""
    files: dict[str, StoredFile]
    """All other files, by name."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A checkpoint with a manifest that can be read; whether its files are as listed is told by `verify`."""

    url: str
    step: int
    lineage: int
    score: float | None
    written_at: float
    files: Mapping[str, StoredFile]

    @property
    def name(self) -> str:
        """Name of its folder."""
        return self.url.rpartition("/")[2]


def write_shard(url: str, tensors: Mapping[str, Tensor], state: Mapping[str, JsonValue]) -> ShardFiles:
    """Write the learner's part of a checkpoint, then read it back and compare; where it fails, nothing stays.

    Args:
        url: the checkpoint's folder, from `CheckpointStore.place`.
        tensors: by name, contiguous, on the CPU, none of them sharing memory.
        state: JSON-able; `step` and `lineage` are expected by the driver.

    Raises:
        CheckpointError: it cannot be written, or what is stored differs from what was written.
    """
    folder = Folder.at(url)
    data = encode_json(state)
    needed = sum(t.nbytes for t in tensors.values()) + len(data)
    folder.make()
    try:
        with folder.outgoing(TENSORS, needed_bytes=needed) as path:
            save_file(dict(tensors), path)
            _check_written(path, tensors)
            written = {TENSORS: Folder.at(str(path.parent)).measure(TENSORS), LEARNER: StoredFile.of(data)}
        folder.write(LEARNER, data)
        for name, expected in written.items():
            folder.verify(name, expected)
    except CheckpointError:
        for name in SHARD:
            folder.remove(name)
        raise
    folder.sync()
    return ShardFiles(written)


def _check_written(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Compare bit for bit, for NaN equals itself here; by numpy, whose threads take no core from an update."""
    stored = load_file(path)
    for name, tensor in tensors.items():
        other = stored[name]
        is_same = (tensor.dtype, tensor.shape) == (other.dtype, other.shape)
        if not is_same or not np.array_equal(_bits(tensor), _bits(other)):
            raise CheckpointError(f"{path} does not hold what was written to it: {name} differs")


def _bits(tensor: Tensor) -> np.ndarray:
    return tensor.detach().reshape(-1).view(torch.uint8).numpy()


def read_shard(url: str) -> tuple[dict[str, Tensor], dict[str, JsonValue]]:
    """Read what `write_shard` wrote, from a checkpoint that was committed.

    Returns:
        Tensors with memory of their own, and the state.

    Raises:
        CheckpointError: a file is missing, cut short or changed; names it.
    """
    folder = Folder.at(url)
    manifest = read_manifest(folder)
    with folder.incoming(TENSORS) as local:
        local.verify(TENSORS, manifest.files[TENSORS])
        tensors = {name: tensor.clone() for name, tensor in load_file(Path(local.path, TENSORS)).items()}
    return tensors, read_json(folder, LEARNER, manifest.files[LEARNER])


def encode_json(value: Mapping[str, Any]) -> bytes:
    """As it is written: the same value gives the same bytes."""
    return (json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n").encode()


def read_json(folder: Folder, name: str, expected: StoredFile) -> dict[str, JsonValue]:
    """A JSON object from a file that must be as expected; raises CheckpointError otherwise."""
    data = folder.read(name)
    if StoredFile.of(data) != expected:
        raise CheckpointError(f"{folder.url}/{name} is damaged: {StoredFile.of(data)} where {expected} was written")
    value: dict[str, JsonValue] = json.loads(data)
    return value


def write_manifest(folder: Folder, manifest: Manifest) -> None:
    """Make a checkpoint of the folder: write the list of all its files, and see that it can be read."""
    content = {**manifest.model_dump(exclude={"files"}), "files": {n: asdict(f) for n, f in manifest.files.items()}}
    folder.write(MANIFEST, _sealed(content))
    if read_manifest(folder) != manifest:
        raise CheckpointError(f"{folder.url}/{MANIFEST} does not hold what was written to it")


def _sealed(content: Mapping[str, Any]) -> bytes:
    """A manifest as it is written, with the hash of itself."""
    return encode_json({**content, "xxh3_128": StoredFile.of(encode_json(content)).xxh3_128})


def read_manifest(folder: Folder) -> Manifest:
    """The list of a checkpoint's files.

    Raises:
        CheckpointError: there is none, it is damaged, or of another format.
    """
    where = f"{folder.url}/{MANIFEST}"
    if MANIFEST not in folder.names():
        raise CheckpointError(f"{folder.url} holds no {MANIFEST}: it was never finished, or is no checkpoint")
    try:
        data = folder.read(MANIFEST)
        content = dict(json.loads(data))
        found = content.get("format")
        if found != FORMAT:
            raise CheckpointError(
                f"{where} has format {found!r}; this version reads {FORMAT} only, and nothing converts it: begin anew"
            )
        content.pop("xxh3_128", None)
        manifest, is_untouched = Manifest.model_validate(content), data == _sealed(content)
    except (ValidationError, ValueError, TypeError) as error:
        raise CheckpointError(f"{where} is damaged: {str(error).splitlines()[0]}") from error
    if not is_untouched:
        raise CheckpointError(f"{where} is damaged: it does not match its own hash")
    if missing := {TENSORS, LEARNER, STATE} - manifest.files.keys():
        raise CheckpointError(f"{where} is damaged: it does not list {', '.join(sorted(missing))}")
    return manifest


def open_checkpoint(folder: Folder) -> Checkpoint:
    """The checkpoint in a folder, as its manifest describes it; raises CheckpointError as `read_manifest` does."""
    manifest = read_manifest(folder)
    return Checkpoint(folder.url, manifest.step, manifest.lineage, manifest.score, manifest.written_at, manifest.files)


def verify(checkpoint: Checkpoint) -> None:
    """Read all of it; raises CheckpointError at the first file that is missing, cut short or changed."""
    folder = Folder.at(checkpoint.url)
    for name, expected in checkpoint.files.items():
        folder.verify(name, expected)
