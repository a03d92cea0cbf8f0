"""JSON files of a run folder: read with an error that says what to do, written whole or not at all."""

import json
import os
from pathlib import Path
from typing import Any

from common.errors import DataError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file of the run folder; raises DataError if it is none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}; delete it to run its stage again") from error
    if not isinstance(value, dict):
        raise DataError(f"{path} holds no JSON object; delete it to run its stage again")
    return value


def write_json(path: Path, value: dict[str, Any]) -> None:
    """Write beside, then rename; raises DataError if the disk does not take it."""
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error}; mend that, and give the same command again") from error
