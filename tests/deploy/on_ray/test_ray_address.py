"""Whoever cannot join a Ray cluster is told why within seconds: nobody there, somebody else there, a token amiss."""

import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from common.errors import ConfigError
from deploy.on_ray import address as ray_address
from deploy.on_ray.address import check_server, check_token, resolve

ROOT = Path(__file__).parents[3]


def test_a_client_address_is_refused_with_what_is_legal():
    with pytest.raises(
        ConfigError, match=r"ray://10\.0\.0\.1:10001: give host:port of the head .* `minichatgpt launch`"
    ):
        resolve("ray://10.0.0.1:10001")


def test_an_address_without_a_port_shows_the_form():
    with pytest.raises(ConfigError, match=r"--address 127\.0\.0\.1: .*; give host:port of the head, or `auto`"):
        resolve("127.0.0.1")


def test_an_address_is_taken_as_it_is():
    assert resolve("127.0.0.1:6379") == "127.0.0.1:6379"


def test_an_address_that_names_no_running_cluster_says_what_to_do():
    with pytest.raises(ConfigError, match=r"--address local names no running cluster; .*`ray start --head`"):
        resolve("local")


def test_auto_is_what_the_environment_says(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1234")
    assert resolve("auto") == "127.0.0.1:1234"


def test_a_port_where_nobody_listens_is_told():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        where = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(ConfigError, match=f"no Ray cluster listens at {where}"):
            check_server(where)


def test_a_host_that_has_no_name_is_told():
    with pytest.raises(ConfigError, match=r"no Ray cluster listens at no-such-host\.invalid:6379"):
        check_server("no-such-host.invalid:6379")


@contextmanager
def listening(answer: bytes | None) -> Iterator[str]:
    """A server that answers whoever connects, or takes the connection and is silent."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        kept = []

        def serve() -> None:
            connection, _ = server.accept()
            kept.append(connection)
            if answer is not None:
                connection.recv(64)
                connection.sendall(answer)
                connection.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"
        for connection in kept:
            connection.close()


def test_a_server_that_never_answers_is_given_up(monkeypatch):
    monkeypatch.setattr(ray_address, "CONNECT_TIMEOUT_S", 0.2)
    with listening(None) as where, pytest.raises(ConfigError, match=r"nothing answers at .* within 0\.2 s"):
        check_server(where)


@pytest.mark.parametrize("answer", [b"", b"HTTP/1.1 505 HTTP Version Not Supported\r\n\r\n", b"\x00\x00"])
def test_another_kind_of_server_is_told(answer):
    with (
        listening(answer) as where,
        pytest.raises(ConfigError, match=r"is no Ray GCS; .* not the dashboard's \(8265\)"),
    ):
        check_server(where)


def test_a_web_server_is_told():
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as server:
        threading.Thread(target=server.handle_request, daemon=True).start()
        with pytest.raises(ConfigError, match="is no Ray GCS"):
            check_server(f"127.0.0.1:{server.server_port}")


def test_a_server_that_speaks_http2_passes():
    with listening(bytes.fromhex("000006040000000000" + "000300000064")) as where:
        check_server(where)


@pytest.mark.parametrize(
    "environment",
    [{}, {"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "secret"}],
)
def test_no_token_is_looked_for_where_none_is_needed_or_one_is_given(environment, tmp_path):
    check_token(environment, tmp_path)


def test_the_tokens_file_is_looked_for_where_ray_looks(tmp_path):
    (tmp_path / ".ray").mkdir()
    (tmp_path / ".ray" / "auth_token").write_text("secret\n", encoding="utf-8")
    check_token({"RAY_AUTH_MODE": "token"}, tmp_path)
    (tmp_path / "mine").write_text("secret", encoding="utf-8")
    check_token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "mine")}, Path("/nowhere"))


def test_a_missing_token_names_the_file(tmp_path):
    with pytest.raises(ConfigError, match=r"RAY_AUTH_TOKEN is not set, and .*auth_token cannot be read"):
        check_token({"RAY_AUTH_MODE": "token"}, tmp_path)
    with pytest.raises(ConfigError, match=r"/nowhere/token cannot be read \(FileNotFoundError\)"):
        check_token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": "/nowhere/token"}, tmp_path)


def test_an_empty_token_is_none(tmp_path):
    (tmp_path / "empty").write_text("\n", encoding="utf-8")
    with pytest.raises(ConfigError, match="empty is empty"):
        check_token({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(tmp_path / "empty")}, tmp_path)


JOIN = """
import sys
from common.errors import ConfigError
from deploy.on_ray.address import connect
try:
    connect(sys.argv[1], logging_level="ERROR", log_to_driver=False)
except ConfigError as error:
    print("refused:", error)
else:
    print("joined")
"""


def join(address: str, **changes: str) -> str:
    """What a process of its own is told when it joins the cluster of this test run."""
    mine = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")}
    environment = mine | {"PYTHONPATH": str(ROOT)} | changes
    done = subprocess.run(
        [sys.executable, "-c", JOIN, address], env=environment, capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    return done.stdout.strip() or done.stderr


@pytest.fixture(scope="module")
def gcs_address(ray_runtime: object) -> str:
    import ray

    address: str = ray.get_runtime_context().gcs_address
    return address


@pytest.mark.ray
def test_with_the_clusters_token_a_process_joins(gcs_address):
    assert join(gcs_address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=os.environ["RAY_AUTH_TOKEN"]) == "joined"


@pytest.mark.ray
def test_a_wrong_token_is_told(gcs_address):
    said = join(gcs_address, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN="0" * 64)
    assert said.startswith(f"refused: Ray at {gcs_address} wants a token; RAY_AUTH_MODE is token: ")
    assert "the token is not the cluster's" in said


@pytest.mark.ray
@pytest.mark.parametrize("mode", [{}, {"RAY_AUTH_MODE": "disabled"}])
def test_a_mode_without_token_is_told(gcs_address, mode):
    said = join(gcs_address, **mode)
    assert f"RAY_AUTH_MODE is {mode.get('RAY_AUTH_MODE', 'not set')}: set RAY_AUTH_MODE=token" in said


@pytest.mark.ray
def test_a_port_of_ray_that_is_not_the_gcs_is_told(gcs_address):
    import ray

    port = ray.nodes()[0]["NodeManagerPort"]
    said = join(f"127.0.0.1:{port}", RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=os.environ["RAY_AUTH_TOKEN"])
    assert "speaks gRPC, but is no Ray GCS" in said
