"""The door of a cluster as seen from outside: its dashboard, tried step by step, so that what is amiss is told at once.

somebody listens ─▶ is a Ray dashboard ─▶ open or closed ─▶ a token is at hand ─▶ it is accepted.
Ray's own client has no time limit, and names of these only the refused token. Called by `deploy/jobs/verbs.py`.
"""

import logging
import os
from pathlib import Path
from typing import Final, NamedTuple

import httpx2
import requests
from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from common.errors import ConfigError
from deploy.http_url import http_url
from deploy.on_ray.address import check_token
from deploy.on_ray.openness import refuse_open

ANSWER_TIMEOUT_S: Final = 10.0
"""Longest time for one answer."""
OLDEST: Final = "2.52"
"""The first Ray that knows tokens, and so says whether it wants one. Its version matters no more than this: driver and
nodes are of one installation, and the API of jobs is the same since 2.0."""


class Dashboard(NamedTuple):
    """One that let us in."""

    client: JobSubmissionClient
    """Ray's client of jobs."""
    mode: str
    """How the cluster authenticates: `token` or `disabled`."""


def open_dashboard(address: str, *, insecure: bool) -> Dashboard:
    """Try the door, and go in.

    Args:
        address: `http://HEAD:8265`.
        insecure: accept a cluster beyond loopback that asks for no token.

    Raises:
        ConfigError: it cannot be reached, is no dashboard, or does not let us in; says what to change.
    """
    url, host = checked_address(address)
    with httpx2.Client(base_url=url, timeout=ANSWER_TIMEOUT_S, trust_env=False) as http:
        mode = _mode(http, url)
        if mode == "disabled":
            refuse_open(url, host, insecure=insecure)
        else:
            _check_own_mode(url)
    check_token(os.environ, Path.home())
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):  # Ray would take these instead of what was asked for
        os.environ.pop(name, None)
    for talkative in ("dashboard.modules.job.sdk", "dashboard.modules.dashboard_sdk", "_private.runtime_env.packaging"):
        logging.getLogger(f"ray.{talkative}").setLevel(logging.WARNING)
    return Dashboard(_accepted(url), mode)


def checked_address(address: str) -> tuple[str, str]:
    """URL without a slash at its end, and host; raises ConfigError if it is not of that form."""
    parts = http_url("--address", address, legal="give the head's dashboard, as http://HEAD:8265")
    assert parts.hostname is not None, "it has been looked at"
    return address.rstrip("/"), parts.hostname


def _mode(http: httpx2.Client, url: str) -> str:
    """`token` or `disabled`: what the dashboard says of itself, for which it wants no token."""
    try:
        answer = http.get("/api/authentication_mode")
    except httpx2.TimeoutException as error:
        raise ConfigError(
            f"nothing answers at {url} within {ANSWER_TIMEOUT_S:g} s: the machine is gone, a firewall is between, or "
            "the dashboard hangs"
        ) from error
    except httpx2.TransportError as error:
        raise ConfigError(
            f"no Ray dashboard listens at {url} ({error}); is the cluster up, does its head have "
            "`pip install 'ray[default]'`, was it started with --dashboard-host so that others reach it, and is this "
            "the dashboard's port (8265 by default), not the GCS's (6379)?"
        ) from error
    try:
        body = answer.json()
        mode = str(body["authentication_mode"])
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"what answers at {url} is no dashboard of Ray {OLDEST} or newer (status {answer.status_code}); give that "
            "of the head, 8265 by default"
        ) from error
    return "disabled" if mode == "disabled" else "token"


def _check_own_mode(url: str) -> None:
    own = os.environ.get("RAY_AUTH_MODE", "token").lower()
    if own != "token":
        raise ConfigError(
            f"Ray at {url} wants a token; RAY_AUTH_MODE is {own}: set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN or "
            "RAY_AUTH_TOKEN_PATH to the cluster's token"
        )


def _accepted(url: str) -> JobSubmissionClient:
    """Ray's client, whose first request shows the token."""
    try:
        return JobSubmissionClient(url)
    except AuthenticationError as error:
        raise ConfigError(
            f"Ray at {url} does not accept the token: compare RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token "
            "with `ray get-auth-token` on its head"
        ) from error
    except (ConnectionError, RuntimeError, requests.RequestException) as error:
        raise ConfigError(f"the dashboard at {url} answers, but not as its job server should: {error}") from error
