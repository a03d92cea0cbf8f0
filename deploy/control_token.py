"""The bearer token of the control channel: a file of the run folder that only its owner can read."""

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from common.errors import ControlError

TOKEN_NAME: Final = "control.token"


@contextmanager
def token_file(folder: Path) -> Iterator[str]:
    """A new token, in a file that nobody else could read at any moment; the file is gone afterwards."""
    path, token = folder / TOKEN_NAME, secrets.token_urlsafe(32)
    path.unlink(missing_ok=True)  # of a run that was killed
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(f"{token}\n")
    try:
        yield token
    finally:
        path.unlink(missing_ok=True)


def read_token(folder: Path) -> str:
    """The token of the run that lives in the folder.

    Raises:
        ControlError: the file is not there, or belongs to another user.
    """
    path = folder / TOKEN_NAME
    try:
        return path.read_text(encoding="ascii").strip()
    except OSError as error:
        raise ControlError(
            f"{path} cannot be read: {error.strerror}; only the user who started the run can steer it"
        ) from error
