"""Names of models: one string stands for a folder, or for a model on the hub at a revision."""

from pathlib import Path


def join_revision(path: str, revision: str | None) -> str:
    """`name@revision`, or the name alone."""
    return path if revision is None else f"{path}@{revision}"


def split_revision(path: str) -> tuple[str, str | None]:
    """Name and revision; a folder on disk has none, whatever its name."""
    if Path(path).exists():
        return path, None
    name, _, revision = path.partition("@")
    return name, revision or None
