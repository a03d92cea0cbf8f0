"""The lines of a file that somebody appends to, newest first, in blocks from the end: long files cost no more than
short ones. Who reads is `run_folder/history.py`.

A file that is replaced while it is open is read as it was. A last line without its end is being written, or was when
its writer died: it is left out.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

BLOCK_BYTES = 1 << 16
"""Read at once."""


@contextmanager
def open_lines(path: Path) -> Iterator[tuple[BinaryIO, int] | None]:
    """The file and its size now, by which all that is read of it fits together; None where there is no such file."""
    try:
        file = path.open("rb")
    except FileNotFoundError:
        yield None
        return
    with file:
        yield file, file.seek(0, 2)


def newest_lines(file: BinaryIO, end: int, *, most_bytes: int | None = None) -> Iterator[bytes | None]:
    """Lines without their ends, newest first.

    Args:
        file: open for reading.
        end: byte at which the file is taken to end.
        most_bytes: read about so many from the end at most; where that leaves lines unread, the last item is None.
    """
    at = end
    rest: bytes | None = None
    """Begins with the end of a line whose beginning is not read yet; None until a line has ended."""
    while at > 0:
        if most_bytes is not None and end - at >= most_bytes:
            yield None
            return
        start = max(0, at - BLOCK_BYTES)
        file.seek(start)
        block = file.read(at - start)
        if len(block) < at - start:  # cut back in place meanwhile: what is left does not fit what was read
            return
        at = start
        pieces = (block + (rest or b"")).split(b"\n")
        if rest is None and len(pieces) == 1:
            continue
        if rest is None:
            pieces.pop()
        rest = pieces[0]
        yield from reversed(pieces[1:])
    if rest is not None:
        yield rest


def count_lines(file: BinaryIO, end: int) -> int:
    """Lines that have ended before a byte."""
    file.seek(0)
    count, left = 0, end
    while left > 0 and (block := file.read(min(left, BLOCK_BYTES))):
        count += block.count(b"\n")
        left -= len(block)
    return count
