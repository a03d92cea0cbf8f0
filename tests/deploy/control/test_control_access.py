"""Who may ask for what: every rule, without a server."""

import pytest

from common.control_config import ControlConfig
from deploy.control.access import Access, Asked, Refused

STEER, READ = "s" * 43, "r" * 43
LOCAL = Access(STEER, READ)
NAMED = Access.of(ControlConfig(allowed_hosts=["Run.Example.org"]), STEER, READ)
REMOTE = Access.of(ControlConfig(host="0.0.0.0", allowed_hosts=["run.example.org", "[fd00::5]"]), STEER, READ)


def asked(
    method="GET", path="/v1/run", host="localhost:80", token=None, origin=None, local="10.0.0.7", scheme="Bearer"
):
    return Asked(
        method=method,
        path=path,
        hosts=[host.encode()],
        origins=[] if origin is None else [origin.encode()],
        authorizations=[] if token is None else [f"{scheme} {token}".encode()],
        local_address=local,
    )


def status(access, **request):
    """Of the refusal; who it is where there is none."""
    try:
        return access.admit(asked(**request))
    except Refused as refused:
        return refused.status


@pytest.mark.parametrize(
    ("header", "who"),
    [("Bearer", "steerer"), ("bearer", "steerer"), ("BEARER", "steerer"), ("Basic", 401), ("Bearer:", 401), ("", 401)],
)
def test_the_scheme_of_authorization_is_bearer_in_any_case(header, who):
    assert status(LOCAL, method="POST", token=STEER, scheme=header) == who


@pytest.mark.parametrize("method", ["POST", "PATCH", "PUT", "DELETE", "TRACE", "BREW"])
@pytest.mark.parametrize("access", [LOCAL, NAMED, REMOTE])
def test_only_the_steering_token_changes_anything(access, method):
    assert status(access, method=method) == 401
    assert status(access, method=method, token=READ) == 403
    assert status(access, method=method, token="x") == 401
    assert status(access, method=method, token=STEER) == "steerer"


@pytest.mark.parametrize(
    ("access", "host", "who"),
    [
        (LOCAL, "localhost", "anonymous"),
        (NAMED, "localhost", "anonymous"),
        (NAMED, "run.example.org", 401),
        (REMOTE, "localhost", 401),
        (REMOTE, "run.example.org:9464", 401),
    ],
)
def test_reading_needs_no_token_only_where_only_this_machine_asks(access, host, who):
    assert status(access, host=host) == who
    assert status(access, host=host, token=READ) == "reader"
    assert status(access, host=host, token=STEER) == "steerer"
    assert status(access, host=host, token=STEER[:-1]) == 401


@pytest.mark.parametrize("access", [LOCAL, REMOTE])
def test_health_is_for_all_and_only_to_be_read(access):
    assert status(access, path="/healthz") == "anonymous"
    assert status(access, path="/healthz", method="POST") == 401
    assert status(access, path="/healthz", host="evil.com") == 421


@pytest.mark.parametrize(
    "host", ["10.0.0.7", "10.0.0.7:9464", "RUN.example.org", "[fd00::5]:80", "localhost", "127.0.0.1:1", "[::1]"]
)
def test_bound_elsewhere_the_address_and_the_names_are_answered(host):
    assert status(REMOTE, host=host, token=READ) == "reader"


@pytest.mark.parametrize("host", ["10.0.0.8", "evil.com", "0.0.0.0", "run.example.org.evil.com", "fd00::5", "", "a b"])
def test_bound_elsewhere_other_names_are_refused(host):
    assert status(REMOTE, host=host, token=STEER) == 421


def test_the_name_of_this_machine_is_one_only_where_it_can_be_reached(monkeypatch):
    monkeypatch.setattr("socket.gethostname", lambda: "Node7.cluster.local")
    remote, local = (Access.of(ControlConfig(host=host), STEER, READ) for host in ("10.0.0.7", "127.0.0.5"))
    for host in ("node7", "node7.cluster.local", "10.0.0.7"):
        assert status(remote, host=host, token=READ) == "reader"
        assert status(local, host=host, token=READ) == 421
    assert status(local, host="127.0.0.5", token=READ) == "reader"


@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    ("origin", "is_own"),
    [
        ("http://localhost:80", True),
        ("https://localhost:80", True),
        ("http://LOCALHOST:80", True),
        ("http://localhost", False),
        ("http://localhost:81", False),
        ("http://evil.com", False),
        ("http://localhost:80.evil.com", False),
        ("null", False),
        ("file://", False),
        ("", False),
    ],
)
def test_only_a_page_that_this_server_has_served_may_ask(method, origin, is_own):
    assert status(LOCAL, method=method, origin=origin, token=STEER) == ("steerer" if is_own else 403)


def test_tokens_are_not_shown_with_the_rules():
    assert STEER not in repr(LOCAL)
    assert READ not in repr(LOCAL)
