"""Joins a running Ray cluster, or says within seconds why not.

Ray itself takes a wrong token for a server that is slow to start (20 s), waits for minutes where another kind of server
listens, and aborts the process where a token is wanted and none is there. So the door is tried first, step by step:
address ─▶ somebody listens ─▶ speaks gRPC ─▶ a token is at hand ─▶ it is accepted ─▶ the cluster is closed to others
─▶ `ray.init`.
"""

import os
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc  # type: ignore[import-untyped]
import ray
from ray._private.services import canonicalize_bootstrap_address
from ray._raylet import GcsClient  # type: ignore[attr-defined]  # its stubs are incomplete
from ray.core.generated.gcs_service_pb2 import CheckAliveRequest
from ray.core.generated.gcs_service_pb2_grpc import NodeInfoGcsServiceStub
from ray.exceptions import AuthenticationError, RpcError

from common.errors import ConfigError
from deploy.on_ray.openness import refuse_open

CONNECT_TIMEOUT_S = 5.0
"""Longest time for a server to take the connection, and to answer its first bytes."""
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + bytes.fromhex("000000040000000000")
"""A client's first words in HTTP/2, on which gRPC is built (RFC 9113, section 3.4): the preface, and empty settings."""
_SETTINGS_FRAME = 4
_KIND_AT = 3
"""Byte of a frame's head that says what it is."""


def connect(address: str, *, insecure: bool = False, **options: Any) -> None:
    """`ray.init` on a running cluster.

    Args:
        address: `host:port` of the head's GCS, or `auto`.
        insecure: accept a cluster beyond loopback that asks for no token.
        options: further arguments of `ray.init`.

    Raises:
        ConfigError: it cannot be reached, or refuses us; says what was tried, and what to change.
    """
    where = resolve(address)
    check_server(where)
    check_token(os.environ, Path.home())
    _check_accepted(where)
    is_open = _asks_for_no_token(where)
    if is_open:
        refuse_open(where, where.rpartition(":")[0], insecure=insecure)
    try:
        ray.init(address=where, **options)
    except (ConnectionError, RuntimeError, ValueError, RpcError) as error:
        reason = error.__cause__ or error
        raise ConfigError(f"Ray at {where} answers, but this process cannot join it: {_in_brief(reason)}") from error
    if is_open:
        _leave_if_reachable(where, insecure=insecure)


def _leave_if_reachable(where: str, *, insecure: bool) -> None:
    """An open cluster's own addresses tell whether others reach it: a head listens on all, loopback among them."""
    try:
        for node in ray.nodes():
            refuse_open(where, node["NodeManagerAddress"], insecure=insecure)
    except ConfigError:
        ray.shutdown()
        raise


def resolve(address: str) -> str:
    """`host:port` of an address as users give it; raises ConfigError if there is none."""
    if "://" in address:
        raise ConfigError(
            f"--address {address}: give host:port of the head (6379 by default) or `auto`, and run on a node of the "
            "cluster; from elsewhere use `minichatgpt launch`"
        )
    try:
        where = canonicalize_bootstrap_address(address)
    except (ValueError, OSError) as error:
        raise ConfigError(f"--address {address}: {error}; give host:port of the head, or `auto`") from error
    if where is None:
        raise ConfigError(
            f"--address {address} names no running cluster; start one by `ray start --head`, give host:port, or leave "
            "--address out: then one is started for the run"
        )
    return str(where)


def check_server(where: str) -> None:
    """Raise ConfigError unless something at `host:port` speaks HTTP/2."""
    host, _, port = where.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_TIMEOUT_S) as connection:
            connection.sendall(_PREFACE)
            answer = _first_bytes(connection)
    except TimeoutError as error:
        raise ConfigError(
            f"nothing answers at {where} within {CONNECT_TIMEOUT_S:g} s: the machine is gone, a firewall is between, "
            "or the server hangs"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"no Ray cluster listens at {where} ({error.strerror or error}); is it running, and is this the port of "
            "its GCS (6379 by default)?"
        ) from error
    if len(answer) <= _KIND_AT or answer[_KIND_AT] != _SETTINGS_FRAME:
        raise ConfigError(
            f"what listens at {where} is no Ray GCS; give the port of `ray start --head --port` (6379 by default), not "
            "the dashboard's (8265) or the client server's (10001)"
        )


def _first_bytes(connection: socket.socket) -> bytes:
    answer = b""
    while len(answer) <= _KIND_AT and (more := connection.recv(64)):
        answer += more
    return answer


def check_token(environment: Mapping[str, str], home: Path) -> None:
    """Raise ConfigError where the mode is `token` and no token is to be had: Ray would abort this process."""
    if environment.get("RAY_AUTH_MODE", "").lower() != "token" or environment.get("RAY_AUTH_TOKEN", "").strip():
        return
    named = environment.get("RAY_AUTH_TOKEN_PATH")
    path = Path(named) if named else home / ".ray" / "auth_token"
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"RAY_AUTH_MODE is `token`, RAY_AUTH_TOKEN is not set, and {path} cannot be read "
            f"({type(error).__name__}); set one of them to the cluster's token (`ray get-auth-token` on its head), or "
            "RAY_AUTH_MODE=disabled for a cluster that asks for none"
        ) from error
    if not token:
        raise ConfigError(f"RAY_AUTH_MODE is `token`, and {path} is empty; put the cluster's token there")


def _check_accepted(where: str) -> None:
    """One call to the GCS, which fails at once where `ray.init` would try again for 20 s."""
    try:
        GcsClient(address=where)
    except AuthenticationError as error:
        mode = os.environ.get("RAY_AUTH_MODE", "not set")
        change = (
            "the token is not the cluster's: compare RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token with "
            "`ray get-auth-token` on its head"
            if mode.lower() == "token"
            else "set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH to the cluster's token"
        )
        raise ConfigError(f"Ray at {where} wants a token; RAY_AUTH_MODE is {mode}: {change}") from error
    except RpcError as error:
        raise ConfigError(
            f"what listens at {where} speaks gRPC, but is no Ray GCS ({_in_brief(error)}); give the port of `ray start "
            "--head --port`, 6379 by default"
        ) from error


def _asks_for_no_token(where: str) -> bool:
    """Whether the GCS answers who shows none. Ray's own client cannot ask: it has one mode for the whole process."""
    with grpc.insecure_channel(where) as channel:
        try:
            NodeInfoGcsServiceStub(channel).CheckAlive(CheckAliveRequest(), timeout=CONNECT_TIMEOUT_S)
        except grpc.RpcError:  # UNAUTHENTICATED; or UNAVAILABLE, where it speaks only TLS
            return False
    return True


def _in_brief(error: BaseException) -> str:
    """An error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {' '.join(lines)[:600]}"
