"""How many connections one address may hold, over real sockets of two addresses of this machine."""

import socket
import time
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest

from deploy.control.connection import CONNECTIONS_OF_ONE
from deploy.control.run_status import Problem
from deploy.control.server import MAX_CONNECTIONS

DEADLINE_S = 60
HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


@pytest.fixture
def connect(serve):
    """Opens a connection to a server from an address of this machine, and closes it at the end."""
    with serve() as served, ExitStack() as stack:
        url = urlsplit(served.url)

        def opened(source):
            there = (url.hostname, url.port)
            return stack.enter_context(socket.create_connection(there, timeout=DEADLINE_S, source_address=(source, 0)))

        yield opened


def said(connection, asked=HEALTHZ):
    """Everything that is answered until the server hangs up."""
    connection.sendall(asked)
    answer = b""
    while part := connection.recv(65536):
        answer += part
    return answer


def test_one_address_cannot_hold_all_connections(connect):
    assert CONNECTIONS_OF_ONE < MAX_CONNECTIONS / 2
    held = [connect("127.0.0.1") for _ in range(CONNECTIONS_OF_ONE)]
    refused = said(connect("127.0.0.1"), asked=b"")
    head, _, body = refused.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 429 ")
    assert f"{CONNECTIONS_OF_ONE} connections from this address" in Problem.model_validate_json(body).message
    for _ in range(MAX_CONNECTIONS):  # as fast as they are closed
        said(connect("127.0.0.1"), asked=b"")
    assert said(connect("127.0.0.2")).startswith(b"HTTP/1.1 200 "), "somebody else is let in"
    assert said(held[0]).startswith(b"HTTP/1.1 200 "), "and so is who was there before"


def test_who_closes_a_connection_may_open_another(connect):
    held = [connect("127.0.0.1") for _ in range(CONNECTIONS_OF_ONE)]
    said(held[0])
    held[0].close()
    deadline = time.monotonic() + DEADLINE_S
    while True:  # the server learns of it in its own time
        if _asked(connect).startswith(b"HTTP/1.1 200 "):
            return
        assert time.monotonic() < deadline


def _asked(connect):
    """The answer; nothing where the server hung up before it read the question."""
    try:
        return said(connect("127.0.0.1"))
    except ConnectionError:
        return b""
