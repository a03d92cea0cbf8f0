"""Tokens of the two kinds, addresses that others can reach, limits, and what is noted, over real HTTP."""

import os
import stat

import httpx2
import pytest

from common.control_config import ControlConfig
from common.errors import ConfigError, ControlError
from deploy.control.client import RunClient
from deploy.control.limits import Limits, Rate
from deploy.control.run_status import Problem
from deploy.control.tokens import run_tokens

STEER, READ = "s" * 32, "r" * 32
ENVIRON = {"RUN_TOKEN": STEER, "RUN_READ_TOKEN": READ}
FROM_ENVIRONMENT = {"token_env": "RUN_TOKEN", "read_token_env": "RUN_READ_TOKEN", "environ": ENVIRON}


def ask(served, method, path, token=None, **how):
    headers = ({} if token is None else {"Authorization": f"Bearer {token}"}) | how.pop("headers", {})
    return httpx2.request(method, served.url + path, headers=headers, trust_env=False, timeout=30, **how)


def test_the_reading_token_reads_and_does_not_steer(served):
    assert ask(served, "GET", "/metrics", served.read_token).status_code == 200
    answer = ask(served, "POST", "/v1/run/stop", served.read_token)
    assert answer.status_code == 403
    assert "may only read" in Problem.model_validate_json(answer.content).message
    assert served.run.stopped is None


def test_both_tokens_are_for_their_owner_only(served):
    assert served.token != served.read_token
    for name in ("control.token", "read.token"):
        assert stat.S_IMODE((served.folder / name).stat().st_mode) == 0o600


def test_bound_to_all_interfaces_everything_but_health_needs_a_token(serve):
    with serve(host="0.0.0.0") as served:
        assert served.url.startswith("http://127.0.0.1:"), "an address at which this machine reaches it"
        assert ask(served, "GET", "/healthz").status_code == 200
        for path in ("/readyz", "/metrics", "/v1/run", "/v1/samples", "/openapi.json", "/nope"):
            assert ask(served, "GET", path).status_code == 401
        assert ask(served, "GET", "/v1/run", served.read_token).status_code == 200
        assert ask(served, "POST", "/v1/run/resume", served.token).status_code == 200
        assert ask(served, "GET", "/v1/run", served.token, headers={"Host": "evil.com"}).status_code == 421


def test_who_reads_without_a_token_is_told_how_to_give_it(serve):
    with serve(host="0.0.0.0") as served, RunClient(None, None, served.url, None) as client:
        for look in (client.status, client.workers, client.events):
            with pytest.raises(ControlError, match=r"needs its token: give --token-file FILE, .* MINICHATGPT_TOKEN"):
                look()


def test_tokens_may_come_from_the_environment_and_are_written_down_nowhere(serve):
    with serve(**FROM_ENVIRONMENT) as served:
        assert ask(served, "POST", "/v1/run/resume", STEER).status_code == 200
        assert ask(served, "POST", "/v1/run/resume", READ).status_code == 403
        assert {path.name for path in served.folder.iterdir()} == {".lock", "run.json"}


@pytest.mark.parametrize(
    ("environ", "said"),
    [
        ({}, "RUN_TOKEN, which is not set"),
        ({"RUN_TOKEN": "short"}, "5 characters"),
        ({"RUN_TOKEN": "x" * 20 + "\n" + "x" * 20}, "line break"),
        ({"RUN_TOKEN": STEER, "RUN_READ_TOKEN": STEER}, "hold the same token"),
    ],
)
def test_what_is_no_token_is_refused_without_showing_it(tmp_path, environ, said):
    config = ControlConfig(token_env="RUN_TOKEN", read_token_env="RUN_READ_TOKEN" if len(environ) == 2 else None)
    with pytest.raises(ConfigError, match=said) as raised, run_tokens(config, tmp_path, environ):
        pass
    assert not any(token in str(raised.value) for token in environ.values())


def test_a_foreign_page_may_neither_read_nor_steer(served):
    for method, path in (("GET", "/v1/run"), ("POST", "/v1/run/stop")):
        answer = ask(served, method, path, served.token, headers={"Origin": "http://evil.com"})
        assert answer.status_code == 403
        assert "http://evil.com" in answer.json()["message"]
    own = {"Origin": served.url}
    assert ask(served, "POST", "/v1/run/resume", served.token, headers=own).status_code == 200


# --- how often


def test_wrong_tokens_are_soon_told_to_wait_and_lock_nobody_else_out(serve):
    with serve(limits=Limits(refusals=Rate(per_s=0.001, burst=2))) as served:
        answers = [ask(served, "POST", "/v1/run/stop", "wrong") for _ in range(4)]
        assert [answer.status_code for answer in answers] == [401, 401, 429, 429]
        assert int(answers[-1].headers["Retry-After"]) > 60
        assert "try again in" in answers[-1].json()["message"]
        assert ask(served, "POST", "/v1/run/resume", served.token).status_code == 200


def test_orders_have_a_limit_of_their_own(serve):
    with serve(limits=Limits(orders=Rate(per_s=0.001, burst=2))) as served:
        assert [ask(served, "POST", "/v1/run/resume", served.token).status_code for _ in range(3)] == [200, 200, 429]
        assert served.run.calls.count("resume") == 2
        assert ask(served, "GET", "/v1/run", served.token).status_code == 200


def test_who_asks_without_a_token_takes_nothing_from_who_has_one(serve):
    with serve(limits=Limits(requests=Rate(per_s=0.001, burst=3))) as served:
        assert [ask(served, "GET", "/healthz").status_code for _ in range(4)] == [200, 200, 200, 429]
        assert ask(served, "GET", "/healthz", served.token).status_code == 429, "where no token is looked at"
        assert ask(served, "GET", "/v1/run", served.token).status_code == 200


# --- what is noted and counted


def test_every_order_is_noted_with_its_address_and_no_token(served):
    ask(served, "POST", "/v1/run/scale", served.token, json={"rollout_workers": 3})
    ask(served, "PATCH", "/v1/run/settings", served.token, json={"kl_target": 3})
    ask(served, "GET", "/v1/run", served.token)
    assert served.run.notes == ["POST /v1/run/scale from 127.0.0.1", "PATCH /v1/run/settings from 127.0.0.1"]


def test_an_order_that_the_run_refuses_is_noted_and_one_without_a_token_is_not(served):
    ask(served, "POST", "/v1/run/scale", served.token, json={"rollout_workers": 1})
    ask(served, "POST", "/v1/run/scale", json={"rollout_workers": 1})
    order = "POST /v1/run/scale from 127.0.0.1"
    why = "rollout_workers=1 is less than rollout.min_workers=2; ask for 2 or more"
    assert served.run.notes == [order, f"{order} refused: {why}"]


def test_answers_are_counted_by_route_and_what_is_not_there_as_other(served):
    for method, path in (("GET", "/v1/run"), ("POST", "/v1/run/stop"), ("GET", "/v1/nope"), ("GET", "/v1/run/x\u0661")):
        ask(served, method, path)
    assert served.run.counts == [("/v1/run", 200), ("/v1/run/stop", 401), ("other", 404), ("other", 404)]


@pytest.mark.parametrize(("method", "path"), [("GET", "/v1/run"), ("GET", "/nope"), ("POST", "/v1/run/stop")])
def test_every_answer_tells_browsers_to_keep_and_guess_nothing(served, method, path):
    headers = ask(served, method, path).headers
    assert headers["X-Content-Type-Options"] == "nosniff"
    assert headers["Cache-Control"] == "no-store"
    assert "default-src 'none'" in headers["Content-Security-Policy"]


def test_secrets_of_the_environment_are_asked_for_at_the_start_only(serve, monkeypatch):
    monkeypatch.setitem(os.environ, "RUN_TOKEN", STEER)
    with serve(token_env="RUN_TOKEN") as served:
        monkeypatch.delitem(os.environ, "RUN_TOKEN")
        assert ask(served, "POST", "/v1/run/resume", STEER).status_code == 200
