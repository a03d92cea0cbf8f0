"""Checkpoints: whole or not there. Tensors as safetensors, the rest as JSON, a manifest of hashes written last.

    step_000012/
      learner.safetensors   weights, value head, optimizer state
      state.json            step, lineage, controller, optimizer_groups, threads
      manifest.json         sizes and xxh3-128 of the other files

Nothing is unpickled: a checkpoint from elsewhere cannot run code.
"""

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from common.errors import CheckpointError
from common.hashing import file_hash

TENSORS, STATE, MANIFEST = "learner.safetensors", "state.json", "manifest.json"
FORMAT = 1


def write_checkpoint(folder: Path, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
    """Write beside, sync, then rename: whoever sees `folder` sees all of it.

    Args:
        folder: must not exist yet, or is replaced.
        tensors: by name.
        state: JSON-able.
    """
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    save_file({name: t.detach().cpu().contiguous().clone() for name, t in tensors.items()}, partial / TENSORS)
    (partial / STATE).write_text(json.dumps(state, indent=1, sort_keys=True), encoding="utf-8")
    files = {
        name: {"bytes": (partial / name).stat().st_size, "xxh3_128": file_hash(partial / name)}
        for name in (TENSORS, STATE)
    }
    (partial / MANIFEST).write_text(json.dumps({"format": FORMAT, "files": files}, indent=1), encoding="utf-8")
    for name in (TENSORS, STATE, MANIFEST):
        _sync(partial / name)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(partial, folder)
    _sync(folder.parent)


def read_checkpoint(folder: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read what `write_checkpoint` wrote.

    Raises:
        CheckpointError: a file is missing, cut short or changed; names it.
    """
    manifest = folder / MANIFEST
    if not manifest.is_file():
        raise CheckpointError(f"{folder} holds no {MANIFEST}: it was never finished, or is no checkpoint")
    try:
        listed = json.loads(manifest.read_text(encoding="utf-8"))
        files = dict(listed["files"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{manifest} is damaged: {error}") from error
    if listed.get("format") != FORMAT:
        raise CheckpointError(f"{manifest} has format {listed.get('format')!r}; this version reads {FORMAT}")
    if files.keys() != {TENSORS, STATE}:
        raise CheckpointError(f"{manifest} lists {sorted(files)}; a checkpoint has {TENSORS} and {STATE}")
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise CheckpointError(f"{path} is missing")
        found = {"bytes": path.stat().st_size, "xxh3_128": file_hash(path)}
        if found != expected:
            raise CheckpointError(f"{path} is damaged: {found} where the manifest says {expected}")
    return load_file(folder / TENSORS), json.loads((folder / STATE).read_text(encoding="utf-8"))


def _sync(path: Path) -> None:
    """Force a file or folder to disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
