"""The bearer tokens of the control channel: files of the run folder that only their owner can read, or secrets from the
environment, which are written down nowhere.
"""

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Final, NamedTuple

from common.control_config import ControlConfig
from common.errors import ConfigError, ControlError
from deploy.environment_secret import read_secret

TOKEN_NAME: Final = "control.token"
READ_TOKEN_NAME: Final = "read.token"
LEAST_CHARACTERS: Final = 32
"""Of a token that somebody chose; 32 random hexadecimal digits are 128 bits."""


class Tokens(NamedTuple):
    """Those of one run."""

    steer: str
    """May do everything."""
    read: str
    """May only look."""


@contextmanager
def run_tokens(config: ControlConfig, folder: Path, environ: Mapping[str, str]) -> Iterator[Tokens]:
    """The tokens of a run while it is served.

    Raises:
        ConfigError: a variable is not set, or holds no token; or both hold the same.
    """
    with ExitStack() as stack:
        tokens = Tokens(
            *(
                stack.enter_context(token_file(folder / name)) if variable is None else _of(environ, variable, setting)
                for name, variable, setting in (
                    (TOKEN_NAME, config.token_env, "token_env"),
                    (READ_TOKEN_NAME, config.read_token_env, "read_token_env"),
                )
            )
        )
        if tokens.steer == tokens.read:
            raise ConfigError(
                f"{config.token_env} and {config.read_token_env} hold the same token; who may read could steer: "
                "choose two"
            )
        yield tokens


def _of(environ: Mapping[str, str], variable: str, setting: str) -> str:
    named = f"control.{setting} names the environment variable {variable}"
    token = read_secret(environ, variable, named)
    if len(token) < LEAST_CHARACTERS:
        raise ConfigError(
            f"{named}, which holds {len(token)} characters; a token that cannot be guessed has {LEAST_CHARACTERS} or "
            "more: `openssl rand -hex 32`"
        )
    return token


@contextmanager
def token_file(path: Path) -> Iterator[str]:
    """A new token, in a file that nobody else could read at any moment; the file is gone afterwards."""
    token = secrets.token_urlsafe(32)
    path.unlink(missing_ok=True)  # of a run that was killed
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii") as file:
        file.write(f"{token}\n")
    try:
        yield token
    finally:
        path.unlink(missing_ok=True)


def read_token(folder: Path) -> str:
    """The token that steers the run that lives in the folder.

    Raises:
        ControlError: the file is not there, or belongs to another user.
    """
    return token_in(folder / TOKEN_NAME)


def token_in(path: Path) -> str:
    """The token in a file; raises ControlError if it cannot be read, or holds none."""
    try:
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is no ASCII text"
        raise ControlError(
            f"{path} cannot be read: {why}; only the user who started the run can steer it, or who was given its token"
        ) from error
    if not token or not token.isprintable() or " " in token:
        raise ControlError(f"{path} holds no token: one line without spaces is legal")
    return token
