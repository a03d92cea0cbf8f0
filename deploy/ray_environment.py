"""Environment of a Ray cluster of our own. Ray reads it when it is imported, so this module must not import it."""

import os
import secrets


def protect_local_cluster() -> None:
    """Bind the cluster to loopback and give it a token that only its own processes know.

    What the user has set already holds.
    """
    os.environ.setdefault("RAY_AUTH_MODE", "token")
    if os.environ["RAY_AUTH_MODE"] == "token" and "RAY_AUTH_TOKEN_PATH" not in os.environ:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")  # else Ray listens on all interfaces
