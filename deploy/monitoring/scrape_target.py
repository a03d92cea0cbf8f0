"""Where Prometheus finds the live runs: one file per run in RUNS/.targets, in the format of file_sd. Written by the
driver while its run lasts; a run that is killed leaves its file, so that the alert ScrapeDown tells of it.

They lie in one folder because Prometheus takes a `*` in the last part of a path only: RUNS/*/x.json is not legal.
"""

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from common.errors import DataError

TARGETS: Final = ".targets"
ANY_ADDRESS: Final = frozenset({"0.0.0.0", "::"})


@contextmanager
def scrape_target(folder: Path, host: str, port: int) -> Iterator[None]:
    """Announce a run to Prometheus while the block runs.

    Args:
        folder: of the run; the file lies in `.targets` beside it.
        host: at which the server of /metrics is bound.
        port: of it.

    Raises:
        DataError: the file cannot be written.
    """
    path = folder.parent / TARGETS / f"{folder.name}.json"
    _write(path, [{"targets": [target_of(host, port)], "labels": {"run": folder.name}}])
    try:
        yield
    finally:
        path.unlink(missing_ok=True)


def target_of(host: str, port: int) -> str:
    """Host and port as Prometheus asks for them: where a server listens on every address, the name of this machine."""
    name = socket.gethostname() if host in ANY_ADDRESS else host
    return f"[{name}]:{port}" if ":" in name else f"{name}:{port}"


def _write(path: Path, groups: list[dict[str, object]]) -> None:
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_text(json.dumps(groups) + "\n", encoding="utf-8")
        os.replace(partial, path)
    except OSError as error:
        raise DataError(f"{path}, which tells Prometheus of the run, cannot be written: {error}") from error
