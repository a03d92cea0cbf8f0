"""Who may ask the control channel for what: pure decisions over host, origin and token.

    Host     ── a name of ours?        else 421   DNS rebinding: a stranger's name that points at this machine
    Origin   ── the page we served?    else 403   a web page of somebody else in the user's browser
    token    ── right, if there is one? else 401
    role     ── may it do this?        else 401 without a token, 403 with the read-only one

Host first: a stranger's page must not even learn whether its token is right. `deploy/control/guard.py` asks.
"""

import hmac
import re
import socket
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final, Literal

from common.control_config import ControlConfig
from deploy.control.page_routes import PAGE_PATHS

Who = Literal["anonymous", "reader", "steerer"]
LOOPBACK_NAMES: Final = frozenset({"localhost", "127.0.0.1", "::1"})
OPEN_PATHS: Final = frozenset({"/healthz"}) | PAGE_PATHS
"""Whoever may ask for these; they say nothing of the run."""
SAFE_METHODS: Final = frozenset({"GET", "HEAD", "OPTIONS"})
"""Methods that change nothing."""
HOST: Final = re.compile(r"(?:\[([0-9A-Fa-f:.]+)\]|([^\[\]:@/\s]+))(?::[0-9]{1,5})?")


class Refused(Exception):  # noqa: N818 an answer, no fault
    """A request that is not carried out: the Problem and its status."""

    def __init__(self, status: int, error: str, message: str, headers: dict[str, str] | None = None) -> None:
        super().__init__(message)
        self.status, self.error, self.message, self.headers = status, error, message, headers or {}


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request says of itself, before its body is read."""

    method: str
    path: str
    hosts: Sequence[bytes]
    """Values of Host."""
    origins: Sequence[bytes]
    """Values of Origin."""
    authorizations: Sequence[bytes]
    """Values of Authorization."""
    local_address: str = ""
    """Address of ours at which it came in."""


@dataclass(frozen=True, slots=True)
class Access:
    """The rules of one server.

    Args:
        token: of who may steer and read.
        read_token: of who may read.
        is_loopback: only this machine can ask; reading needs no token then.
        names: further hosts as which we are known, in lower case, IPv6 without brackets.
    """

    token: str = field(repr=False)
    read_token: str = field(repr=False)
    is_loopback: bool = True
    names: frozenset[str] = frozenset()

    @classmethod
    def of(cls, config: ControlConfig, token: str, read_token: str) -> "Access":
        """What a configuration wants."""
        names = {host.strip("[]").lower() for host in config.allowed_hosts}
        names |= {config.host.lower()} - {"0.0.0.0", "::"}
        if not config.is_loopback:
            machine = socket.gethostname().lower()
            names |= {machine, machine.partition(".")[0]}
        return cls(token, read_token, config.is_loopback, frozenset(names))

    def admit(self, asked: Asked) -> Who:
        """Whoever asks, if he may; raises Refused if not."""
        name = self._host(asked)
        self._check_origin(asked)
        if asked.path in OPEN_PATHS and asked.method in SAFE_METHODS:
            return "anonymous"
        who = self._who(asked.authorizations)
        if who == "steerer" or (who == "reader" and asked.method in SAFE_METHODS):
            return who
        if who == "reader":
            raise Refused(
                403,
                "read-only token",
                f"this token may only read, and {asked.method} {asked.path} changes the run; send the one from "
                "control.token of the run folder, or from the variable that control.token_env names",
            )
        if asked.method in SAFE_METHODS and self.is_loopback and name in LOOPBACK_NAMES:
            return who
        needs = "what changes the run" if asked.method not in SAFE_METHODS else "everything but /healthz, off loopback,"
        raise Refused(
            401,
            "no token",
            f"got 0 Authorization headers, and {needs} needs one, `Authorization: Bearer TOKEN`, with the token from "
            "control.token of the run folder (read.token where it is only to read)",
        )

    def _host(self, asked: Asked) -> str:
        """The name that the client calls us by."""
        if len(asked.hosts) == 1 and (match := HOST.fullmatch(asked.hosts[0].decode("latin-1"))):
            name = (match[1] or match[2]).lower()
            if name in LOOPBACK_NAMES or name in self.names or (not self.is_loopback and name == asked.local_address):
                return name
        got = ", ".join(_shown(host) for host in asked.hosts) or "none"
        others = "".join(f", {name}" for name in sorted(self.names - LOOPBACK_NAMES))
        raise Refused(
            421,
            "wrong host",
            f"Host is {got}; legal are localhost, 127.0.0.1 and [::1]{others}, with or without a port; "
            "control.allowed_hosts adds names",
        )

    @staticmethod
    def _check_origin(asked: Asked) -> None:
        """A browser names the page that asks; ours has the host that it asks."""
        own = asked.hosts[0].lower()
        for origin in asked.origins:
            if origin.lower() not in (b"http://" + own, b"https://" + own):
                raise Refused(
                    403,
                    "foreign origin",
                    f"the web page {_shown(origin)} may not ask this server; only one that it has served itself may",
                )

    def _who(self, given: Sequence[bytes]) -> Who:
        """By the token. Both are compared to the end, so that the time tells nothing."""
        if not given:
            return "anonymous"
        if len(given) > 1:
            raise Refused(401, "two tokens", f"got {len(given)} Authorization headers; send one")
        scheme, _, token = given[0].partition(b" ")
        is_bearer = scheme.lower() == b"bearer"  # of any case: RFC 9110, section 11.1
        may_steer = hmac.compare_digest(token, self.token.encode()) and is_bearer
        may_read = hmac.compare_digest(token, self.read_token.encode()) and is_bearer
        if may_steer or may_read:
            return "steerer" if may_steer else "reader"
        raise Refused(
            401,
            "wrong token",
            "the Authorization header does not hold this run's token; read it from control.token of the run "
            "folder: each start of a run makes a new one, unless control.token_env names it",
        )


def _shown(header: bytes) -> str:
    return repr(header[:100].decode("latin-1"))
