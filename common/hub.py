"""Names of models: one string stands for a folder, or for a model on the hub at a revision."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from common.errors import ConfigError


def join_revision(path: str, revision: str | None) -> str:
    """`name@revision`, or the name alone."""
    return path if revision is None else f"{path}@{revision}"


def split_revision(path: str) -> tuple[str, str | None]:
    """Name and revision; a folder on disk has none, whatever its name."""
    if Path(path).exists():
        return path, None
    name, _, revision = path.partition("@")
    return name, revision or None


@contextmanager
def loading(path: str) -> Iterator[tuple[str, str | None]]:
    """Name and revision of a model that is loaded inside.

    Raises:
        ConfigError: it is no folder of a model, and the hub does not have it or cannot be reached.
    """
    try:
        yield split_revision(path)
    except OSError as error:
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"cannot load {path!r}: neither a folder with a model, nor to be had from the Hugging Face hub ({first}); "
            "check the name, the revision and the network"
        ) from error
