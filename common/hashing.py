"""Hashes of files: to know content again, not to defend against an attacker."""

from pathlib import Path

import xxhash


def file_hash(path: Path) -> str:
    """xxh3-128 of a file, in hexadecimal digits."""
    digest = xxhash.xxh3_128()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()
