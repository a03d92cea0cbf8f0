"""Python's collector of cycles, kept away from what is never garbage: the packages that a process loads."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def loading_packages() -> Iterator[None]:
    """Import inside: a fifth of the time of importing torch and transformers is spent on looking for garbage, and each
    later look passes over all that was imported.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
