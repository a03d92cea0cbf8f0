"""Refuses a Ray cluster that anybody on the network may use: one beyond loopback that asks for no token.

Whoever reaches an open cluster's ports runs any code on all of its nodes, as the user that started Ray. It is not a
firewall, and says nothing of TLS. Called before a cluster is attached to, started, or asked through its dashboard.
Imports no Ray: a cluster of our own is judged before Ray is loaded.
"""

import ipaddress
import os
import socket
from collections.abc import Mapping

from common.errors import ConfigError

HOW_TO_CLOSE = (
    "make a token with `ray get-auth-token --generate`, give it to all nodes and to this process (RAY_AUTH_TOKEN, "
    "RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token), set RAY_AUTH_MODE=token for all of them, and start Ray anew; or, on a "
    "network that nobody else reaches, add --insecure"
)


def be_explicit(environment: dict[str, str] | os._Environ[str] = os.environ) -> None:
    """Ask with a token unless the user chose otherwise.

    Ray's own default depends on whether a token happens to lie in the home directory. Ray reads its mode when it is
    imported: call this before.
    """
    if not environment.get("RAY_AUTH_MODE"):  # an empty one Ray takes for `disabled`
        environment["RAY_AUTH_MODE"] = "token"


def is_loopback(host: str) -> bool:
    """Whether only processes of this machine are reached by that name or address."""
    try:
        found = socket.getaddrinfo(host.strip("[]"), None, type=socket.SOCK_STREAM)
    except OSError:
        return False
    return all(ipaddress.ip_address(address[0].partition("%")[0]).is_loopback for *_, address in found)  # type: ignore[union-attr]


def refuse_open(where: str, host: str, *, insecure: bool) -> None:
    """Raise ConfigError for a cluster that asks for no token, unless it is on loopback or the user accepts it."""
    if insecure or is_loopback(host):
        return
    raise ConfigError(
        f"Ray at {where} asks for no token, and {host} is not loopback: whoever reaches it runs any code there; "
        f"{HOW_TO_CLOSE}"
    )


def refuse_open_local(environment: Mapping[str, str], *, insecure: bool) -> None:
    """Raise ConfigError where a cluster of our own would listen on all interfaces without a token."""
    is_open = environment.get("RAY_AUTH_MODE", "").lower() != "token"
    if insecure or not is_open or environment.get("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0") in ("", "0"):
        return
    raise ConfigError(
        f"RAY_AUTH_MODE is {environment.get('RAY_AUTH_MODE', 'not set')} and RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER is "
        f"{environment['RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER']}: the cluster of this run would listen on all interfaces "
        "and ask nobody for a token; unset either of them, or add --insecure"
    )
