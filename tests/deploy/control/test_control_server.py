"""The control channel over real HTTP: who may ask, what may be asked, what is answered, and what is left afterwards."""

import hmac
import json
import os
import re
import socket
import stat
import threading
import time
from urllib.parse import urlsplit

import httpx2
import pytest
from prometheus_client import CollectorRegistry
from pydantic import ValidationError

from common.control_config import ControlConfig
from common.errors import CheckpointError, ConfigError, ControlError, PhaseTimeoutError
from deploy.control import calls as control_calls
from deploy.control import connection as control_connection
from deploy.control import guard as control_guard
from deploy.control.run_status import CheckpointInfo, Problem, RunStatus
from deploy.control.server import serve_control
from deploy.run_folder.address import read_address

READS = ["/readyz", "/metrics", "/openapi.json", "/v1/run", "/v1/workers", "/v1/ledger", "/v1/updates", "/v1/samples",
         "/v1/events"]  # fmt: skip
ORDERS = {
    ("POST", "/v1/run/scale"): {"rollout_workers": 3},
    ("POST", "/v1/run/pause"): None,
    ("POST", "/v1/run/resume"): None,
    ("PATCH", "/v1/run/settings"): {"temperature": 0.5},
    ("POST", "/v1/run/checkpoint"): None,
    ("POST", "/v1/run/stop"): None,
}
"""And a body that is legal."""
HEALTHZ = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
ENDPOINTS = [("GET", "/v1/run"), *ORDERS]
NOT_THERE = [("GET", "/docs"), ("GET", "/redoc"), ("GET", "/v1/nope"), ("DELETE", "/v1/run")]


def bare(served, method, path, headers=None, **how):
    """A request without a token, unless `headers` has one."""
    return httpx2.request(method, served.url + path, headers=headers or {}, trust_env=False, timeout=30, **how)


def problem(answer, status):
    """What a refusal says."""
    assert answer.status_code == status, answer.text
    assert "Traceback" not in answer.text
    return Problem.model_validate_json(answer.content).message


def over_socket(served, request: bytes) -> bytes:
    """What the server answers to bytes of ours, until it closes."""
    address = urlsplit(served.url)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(request)
        answer = b""
        while part := connection.recv(65536):
            answer += part
    return answer


def until(is_true):
    deadline = time.monotonic() + 60
    while not is_true():
        assert time.monotonic() < deadline, "nothing happened within a minute"
        time.sleep(0.01)


def servers():
    """Threads that serve."""
    return {thread for thread in threading.enumerate() if thread.name == "control"}


# --- who may ask


def test_health_is_answered_to_whoever_asks(served):
    answer = bare(served, "GET", "/healthz")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})


@pytest.mark.parametrize("path", READS)
def test_on_loopback_reading_needs_no_token(served, path):
    assert bare(served, "GET", path).status_code == 200


@pytest.mark.parametrize(("method", "path"), [*ORDERS, ("DELETE", "/v1/run"), ("PUT", "/v1/nope")])
def test_nothing_is_changed_without_the_token(served, method, path):
    message = problem(bare(served, method, path, json=ORDERS.get((method, path))), 401)
    assert "got 0 Authorization headers" in message
    assert "control.token" in message
    assert not served.run.calls


@pytest.mark.parametrize(
    "given",
    [
        "Bearer wrong",
        "Bearer",
        "",
        "Basic {token}",
        "{token}",
        "Bearer {token}x",
        "Bearers {token}",
        "Bearer ä",
    ],
)
@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
def test_a_wrong_token_is_refused(served, method, path, given):
    header = given.format(token=served.token).encode("latin-1")
    message = problem(bare(served, method, path, {b"Authorization": header}), 401)
    assert "does not hold this run's token" in message
    assert served.token not in message
    assert not served.run.calls


def test_two_tokens_are_refused(served):
    headers = [("Authorization", f"Bearer {served.token}")] * 2
    assert "got 2 Authorization headers" in problem(bare(served, "GET", "/v1/run", headers), 401)


def test_a_refusal_says_which_scheme_is_wanted(served):
    assert bare(served, "POST", "/v1/run/stop").headers["WWW-Authenticate"] == "Bearer"


def test_tokens_are_compared_in_constant_time(served, monkeypatch):
    compared = []
    real = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append((a, b)) or real(a, b))
    for scheme in ("Bearer", "bearer", "Basic"):
        compared.clear()
        bare(served, "GET", "/v1/run", {"Authorization": f"{scheme} guess"})
        assert compared == [(b"guess", token.encode()) for token in (served.token, served.read_token)]


def test_every_start_makes_a_new_token_of_256_bits(serve):
    with serve() as first, serve_control(ControlConfig(), first.run, first.folder.parent, registry=CollectorRegistry()):
        other = (first.folder.parent / "control.token").read_text(encoding="ascii").strip()
        assert other != first.token
        assert re.fullmatch(r"[A-Za-z0-9_-]{43}", first.token)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1", "127.0.0.1:65535", "[::1]", "[::1]:80"])
def test_names_of_this_machine_are_answered(served, host):
    assert served.ask("GET", "/v1/run", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    ["evil.com", "127.0.0.1.evil.com", "evil.com:80", "localhost@evil.com", "localhost.", "127.0.0.1:80:80", "", "::1"],
)
@pytest.mark.parametrize("path", ["/healthz", "/v1/run"])
def test_names_that_a_stranger_points_here_are_refused(served, host, path):
    """DNS rebinding: the browser sends the name that it looked up."""
    message = problem(served.ask("GET", path, headers={"Host": host}), 421)
    assert repr(host) in message
    assert "legal are localhost, 127.0.0.1 and [::1], with or without a port" in message
    assert not served.run.calls


def test_a_request_without_a_host_is_refused(served):
    answer = over_socket(served, b"GET /healthz HTTP/1.0\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 421")
    assert b"Host is none" in answer


# --- what may be sent


def test_a_body_that_is_too_large_is_refused_before_it_is_read(served):
    head = b"POST /v1/run/stop HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\nContent-Length: %d\r\n\r\n"
    answer = over_socket(served, head % (served.token.encode(), control_guard.MAX_BODY_BYTES + 1))
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"larger than 16384 bytes" in answer
    assert not served.run.calls


def test_a_body_that_does_not_say_how_large_it_is_is_cut_off(served):
    pieces = iter([b" " * 1000] * 17)
    assert "larger than 16384 bytes" in problem(served.ask("POST", "/v1/run/stop", content=pieces), 413)
    assert not served.run.calls


def test_a_body_of_the_legal_size_is_read(served):
    body = b'{"reason": "enough"}'
    body += b" " * (control_guard.MAX_BODY_BYTES - len(body))
    answer = served.ask("POST", "/v1/run/stop", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == 200
    assert served.run.stopped == "enough"


def test_a_body_that_does_not_come_is_not_waited_for(served, monkeypatch):
    monkeypatch.setattr(control_guard, "BODY_TIMEOUT_S", 0.1)
    head = b"POST /v1/run/stop HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\nContent-Length: 9\r\n\r\n{"
    answer = over_socket(served, head % served.token.encode())
    assert answer.startswith(b"HTTP/1.1 408")
    assert not served.run.calls


def test_a_body_that_is_cut_short_does_nothing(served):
    """An empty body would be a legal order to stop."""
    address = urlsplit(served.url)
    head = b"POST /v1/run/stop HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %b\r\nContent-Length: 9\r\n\r\n"
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        connection.sendall(head % served.token.encode())
    assert served.ask("GET", "/v1/run").json()["stopping"] is None


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("{", "no JSON"),
        ("", "must be a JSON object"),
        ("[1]", "must be a JSON object"),
        ("null", "must be a JSON object"),
        ('"3"', "must be a JSON object"),
        ("[" * 16000, "parsing the body"),
        ("{}", "nothing to change; give rollout_workers, reward_replicas or both"),
        ('{"rollout_worker": 3}', "unknown key 'rollout_worker': did you mean 'rollout_workers'?"),
        ('{"rollout_workers": 0}', "rollout_workers: Input should be greater than or equal to 1 (got '0')"),
        ('{"rollout_workers": -1}', "greater than or equal to 1"),
        ('{"reward_replicas": 10001}', "less than or equal to 10000 (got '10001')"),
        ('{"rollout_workers": 2.5}', "rollout_workers: Input should be a valid integer"),
        ('{"rollout_workers": "3"}', "rollout_workers: Input should be a valid integer"),
        ('{"rollout_workers": true}', "rollout_workers: Input should be a valid integer"),
        ('{"rollout_workers": NaN}', "rollout_workers: Input should be a valid integer"),
    ],
)
def test_what_is_no_size_is_refused_with_what_is_legal(served, body, said):
    answer = served.ask("POST", "/v1/run/scale", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code in (400, 422)
    assert said in problem(answer, answer.status_code)
    assert not served.run.calls


def test_a_body_that_does_not_say_that_it_is_json_is_refused(served):
    answer = served.ask("POST", "/v1/run/scale", content=b'{"rollout_workers": 3}')
    assert "Content-Type: application/json" in problem(answer, 422)


@pytest.mark.parametrize(("method", "path"), NOT_THERE)
def test_what_is_not_there_is_answered_with_what_is(served, method, path):
    answer = served.ask(method, path)
    message = problem(answer, answer.status_code)
    assert answer.status_code in (404, 405)
    for known in ("GET /healthz", *(f"GET {path}" for path in READS), *(" ".join(order) for order in ORDERS)):
        assert known in message
    assert not re.search(r"\.(js|css)\b", message), "files of the page are no routes to ask"


# --- what is answered


def test_status_is_what_the_run_says(served):
    assert RunStatus.model_validate_json(served.ask("GET", "/v1/run").content) == served.run.status()


def test_scale_passes_on_what_is_asked_and_answers_with_the_new_targets(served):
    answer = served.ask("POST", "/v1/run/scale", json={"rollout_workers": 4})
    assert ("scale", 4, None) in served.run.calls
    assert {role: pool["target"] for role, pool in answer.json()["pools"].items()} == {"rollout": 4, "reward": 1}
    served.ask("POST", "/v1/run/scale", json={"rollout_workers": 3, "reward_replicas": 2})
    assert ("scale", 3, 2) in served.run.calls


def test_stop_passes_on_the_reason(served):
    assert served.ask("POST", "/v1/run/stop", json={"reason": "out of money"}).json()["stopping"] == "out of money"
    assert served.ask("POST", "/v1/run/stop").json()["stopping"] == "minichatgpt stop"


@pytest.mark.parametrize("reason", ["", "x" * 201, "two\nlines", "\x1b[2J"])
def test_a_reason_is_one_printable_line(served, reason):
    message = problem(served.ask("POST", "/v1/run/stop", json={"reason": reason}), 422)
    assert "reason" in message
    assert served.run.stopped is None


def test_a_checkpoint_is_answered_once_it_is_written(serve, plain_run):
    run, info = plain_run(), CheckpointInfo(step=9, url="memory://nine", age_s=0.0)
    with serve(run) as served:
        writer = threading.Thread(
            target=lambda: (until(lambda: "checkpoint" in run.calls), run.future.set_result(info))
        )
        writer.start()
        assert CheckpointInfo.model_validate_json(served.ask("POST", "/v1/run/checkpoint").content) == info
        writer.join(60)


def test_a_checkpoint_that_takes_too_long_goes_on(served):
    message = problem(served.ask("POST", "/v1/run/checkpoint", json={"wait_s": 0.05}), 504)
    assert "not written and verified within 0.05 s; it goes on" in message
    assert not served.run.future.cancelled()
    served.run.future.set_result(CheckpointInfo(step=9, url="memory://nine", age_s=0.0))
    assert served.ask("POST", "/v1/run/checkpoint").json()["step"] == 9


def test_a_checkpoint_that_fails_says_why(served):
    served.run.future.set_exception(CheckpointError("the disk is full"))
    assert problem(served.ask("POST", "/v1/run/checkpoint"), 409) == "the disk is full"


def test_a_checkpoint_that_is_given_up_is_told(served):
    served.run.future.cancel()
    assert "gave the checkpoint up" in problem(served.ask("POST", "/v1/run/checkpoint"), 409)


@pytest.mark.parametrize("wait_s", [0, -1, 3601, "NaN"])
def test_a_wait_has_bounds(served, wait_s):
    content = json.dumps({"wait_s": wait_s}).replace('"NaN"', "NaN")
    answer = served.ask("POST", "/v1/run/checkpoint", content=content, headers={"Content-Type": "application/json"})
    assert "wait_s: Input should be" in problem(answer, 422)


# --- what goes wrong in the run


@pytest.mark.parametrize(
    ("failure", "status"),
    [(ConfigError("too few"), 422), (ControlError("no pools"), 409), (PhaseTimeoutError("pool busy"), 504)],
)
@pytest.mark.parametrize(("method", "path"), ENDPOINTS)
def test_errors_of_the_run_are_answered_with_their_message(served, method, path, failure, status):
    served.run.failure = failure
    assert problem(served.ask(method, path, json=ORDERS.get((method, path))), status) == str(failure)


def test_fewer_than_the_minimum_are_refused_with_the_minimum(served):
    message = problem(served.ask("POST", "/v1/run/scale", json={"rollout_workers": 1}), 422)
    assert message == "rollout_workers=1 is less than rollout.min_workers=2; ask for 2 or more"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_bug_tells_the_client_nothing_and_the_server_goes_on(served):
    served.run.failure = TypeError("the secret of line 12")
    for method, path in ENDPOINTS:
        assert (
            problem(served.ask(method, path, json=ORDERS.get((method, path))), 500)
            == "internal error; the driver's log has it"
        )
    served.run.failure = None
    assert served.ask("GET", "/v1/run").status_code == 200


def test_a_bug_in_a_checkpoint_tells_the_client_nothing(served):
    served.run.future.set_exception(TypeError("the secret of line 12"))
    assert problem(served.ask("POST", "/v1/run/checkpoint"), 500) == "internal error; the driver's log has it"


def test_a_run_that_hangs_is_given_up_and_the_server_goes_on(serve, plain_run):
    run = plain_run(asleep=threading.Event())
    with serve(run, call_timeout_s=0.1) as served:
        for _ in range(control_calls.MAX_CALLS):
            assert "has not answered within 0.1 s" in problem(served.ask("GET", "/v1/run"), 504)
        assert "16 calls wait for the run already" in problem(served.ask("GET", "/v1/run"), 503)
        assert served.ask("GET", "/healthz").status_code == 200
        run.asleep.set()
        until(lambda: served.ask("GET", "/v1/run").status_code == 200)


def test_a_slow_call_does_not_hold_up_the_others(serve, plain_run):
    run = plain_run(asleep=threading.Event())
    with serve(run) as served:
        slow = threading.Thread(target=lambda: served.ask("GET", "/v1/run"))
        slow.start()
        until(lambda: run.calls)
        assert served.ask("GET", "/healthz").status_code == 200
        run.asleep.set()
        slow.join(60)
        assert not slow.is_alive()


# --- the token's file, the address, the end


def test_only_the_owner_can_ever_read_the_token(serve, monkeypatch):
    """Even where new files would be open to all, from the first moment, and over a file that was open before."""
    modes = []
    real = os.open

    def watched(path, flags, mode=0o777, **how):
        descriptor = real(path, flags, mode, **how)
        if str(path).endswith("control.token") and flags & os.O_CREAT:
            modes.append((stat.S_IMODE(os.fstat(descriptor).st_mode), os.fstat(descriptor).st_size))
        return descriptor

    before = os.umask(0)
    try:
        with serve() as served:
            path = served.folder / "control.token"
        path.write_text("stale", encoding="ascii")
        path.chmod(0o666)
        monkeypatch.setattr(os, "open", watched)
        with serve():
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert modes == [(0o600, 0)]
    finally:
        os.umask(before)


def test_the_address_is_written_down_and_holds_no_secret(served):
    address = read_address(served.folder)
    assert address.control_url == served.url
    assert address.pid == os.getpid()
    assert served.token not in (served.folder / "run.json").read_text(encoding="utf-8")


def test_nothing_is_left_when_it_ends(serve):
    before = servers()
    with serve() as served:
        port = urlsplit(served.url).port
        assert len(servers() - before) == 1
    assert {path.name for path in served.folder.iterdir()} == {".lock"}
    assert servers() == before
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))


def test_nothing_is_left_when_the_run_fails(serve):
    with pytest.raises(KeyError), serve() as served:
        raise KeyError
    assert {path.name for path in served.folder.iterdir()} == {".lock"}
    with pytest.raises(httpx2.ConnectError):
        served.ask("GET", "/healthz")


def test_who_waits_when_the_run_ends_is_told(serve, plain_run):
    run, answers = plain_run(), []
    with serve(run) as served:
        waiting = threading.Thread(target=lambda: answers.append(served.ask("POST", "/v1/run/checkpoint")))
        waiting.start()
        until(lambda: "checkpoint" in run.calls)
    waiting.join(60)
    assert problem(answers[0], 503) == "the run is ending"
    run.future.set_result(CheckpointInfo(step=9, url="memory://nine", age_s=0.0))  # nobody listens, nothing breaks


def test_a_call_that_hangs_does_not_keep_the_server(serve, plain_run):
    before = servers()
    run = plain_run(asleep=threading.Event())
    with serve(run) as served:
        asking = threading.Thread(target=lambda: served.ask("GET", "/v1/run"))
        asking.start()
        until(lambda: run.calls)
    assert servers() == before
    asking.join(60)
    run.asleep.set()


def test_a_connection_that_is_kept_does_not_keep_the_server(serve):
    before = servers()
    with serve() as served:
        keeping = httpx2.Client(headers=served.bearer, trust_env=False)
        assert keeping.get(f"{served.url}/v1/run").status_code == 200
    assert servers() == before
    keeping.close()


def test_a_taken_port_is_a_setting_to_change(serve):
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with (
            pytest.raises(ConfigError, match=rf"control cannot bind 127\.0\.0\.1:{port}: .*; set control\.port = 0"),
            serve(port=port),
        ):
            pass
    with serve(port=port) as served:
        assert served.url == f"http://127.0.0.1:{port}"


def test_it_speaks_ipv6_too(serve):
    with serve(host="::1") as served:
        assert served.url.startswith("http://[::1]:")
        assert served.ask("GET", "/v1/run").status_code == 200


@pytest.mark.parametrize("host", ["localhost", "", "10.0.0", "*", "0.0.0.0:80"])
def test_what_is_no_address_is_refused(host):
    with pytest.raises(ValidationError, match=r"is no IP address; legal are 127\.0\.0\.1 or ::1"):
        ControlConfig(host=host)


def test_it_can_be_turned_off(tmp_path, plain_run):
    with serve_control(ControlConfig(enabled=False), plain_run(), tmp_path, registry=CollectorRegistry()) as url:
        assert url is None
        assert not list(tmp_path.iterdir())


@pytest.fixture(autouse=True)
def nothing_is_written_to_the_terminal(capfd, request):
    yield
    if "bug" not in request.node.name:
        assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("sent", [b"", HEALTHZ[:-2], HEALTHZ + b"GET /healthz"], ids=["nothing", "part", "more"])
def test_who_connects_and_does_not_ask_is_hung_up_on(served, monkeypatch, sent):
    """Else as many as the server answers at once would shut out everybody, without a token."""
    monkeypatch.setattr(control_connection, "REQUEST_TIMEOUT_S", 0.2)
    answer = over_socket(served, sent)
    assert answer.count(b"HTTP/1.1 200 OK") == sent.count(b"\r\n\r\n")


def test_who_waits_for_an_answer_is_not_hung_up_on(serve, plain_run, monkeypatch):
    monkeypatch.setattr(control_connection, "REQUEST_TIMEOUT_S", 0.05)
    run = plain_run(asleep=threading.Event())
    with serve(run) as served:
        threading.Timer(0.5, run.asleep.set).start()
        assert served.ask("GET", "/v1/run").status_code == 200
