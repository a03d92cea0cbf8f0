"""Environment of our processes. Ray and OpenMP read theirs when they are loaded, so this module imports neither."""

import os
import secrets

from deploy.on_ray.openness import be_explicit

THREADS = {"GOMP_SPINCOUNT": "2000"}
"""A waiting OpenMP thread spins for microseconds, then sleeps: spinning for long takes the core that another process
needs, and sleeping at once halves the speed of a process that has both cores to itself."""

ONE_HEAP = {"MALLOC_ARENA_MAX": "1"}
"""For processes that train. Under Ray they work in another thread than the first, to which the C library would give a
heap of its own; what `common/freed_memory.py` asks for, it asks for the first heap."""


def protect_local_cluster() -> None:
    """Bind the cluster to loopback and give it a token that only its own processes know.

    What the user has set already holds.
    """
    be_explicit()
    if os.environ["RAY_AUTH_MODE"].lower() == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # else Ray listens on all interfaces
