"""Settings of the driver's HTTP server: who may reach it, and where its tokens come from."""

import ipaddress
import re
from typing import Annotated

from pydantic import AfterValidator, Field, field_validator, model_validator

from common.config_base import Config


def _variable(name: str | None) -> str | None:
    if name is not None and not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
        raise ValueError(
            "must be the name of an environment variable, as in RUN_TOKEN: letters, digits and _; never the token "
            "itself"
        )
    return name


Variable = Annotated[str, AfterValidator(_variable)]


class ControlConfig(Config):
    """The driver's HTTP server: metrics for Prometheus, a page for people, and what steers the run."""

    enabled: bool = True
    """Serve it while the run lasts."""
    host: str = "127.0.0.1"
    """IP address to bind. On 127.0.0.1 or ::1 reading needs no token, for only this machine can ask. On any other, as
    0.0.0.0 for all interfaces, everything but /healthz needs one."""
    port: int = Field(default=0, ge=0, le=65535)
    """Port to bind; 0 takes a free one, written to run.json and shown at the start."""
    allowed_hosts: list[str] = []
    """Further names by which clients may call this server, without port, as that of a proxy or a Kubernetes service;
    the bound address and the names of this machine are known. Whoever uses one needs a token."""
    token_env: Variable | None = None
    """Environment variable of the driver (of a job: where Ray was started on the head) with the token that may steer;
    none: a new one with each start, in control.token of the run folder."""
    read_token_env: Variable | None = None
    """Environment variable of the token that may only read; none: a new one with each start, in read.token."""

    @property
    def is_loopback(self) -> bool:
        """Whether only this machine can reach it."""
        return ipaddress.ip_address(self.host).is_loopback

    @field_validator("host")
    @classmethod
    def _is_an_address(cls, host: str) -> str:
        try:
            ipaddress.ip_address(host)
        except ValueError as error:
            raise ValueError(
                f"host={host!r} is no IP address; legal are 127.0.0.1 or ::1 (this machine only), 0.0.0.0 or :: (all "
                "interfaces), and any address of this machine"
            ) from error
        return host

    @field_validator("allowed_hosts")
    @classmethod
    def _are_names(cls, hosts: list[str]) -> list[str]:
        for host in hosts:
            if not re.fullmatch(r"[A-Za-z0-9_.-]+|\[[0-9A-Fa-f:.]+\]", host):
                raise ValueError(
                    f"{host!r} is no name of a host; write it as in `metrics.example.org`, 10.0.0.5 or [fd00::5]: no "
                    "scheme, no port, no wildcard"
                )
        return hosts

    @model_validator(mode="after")
    def _tokens_differ(self) -> "ControlConfig":
        if self.token_env is not None and self.token_env == self.read_token_env:
            raise ValueError(
                f"token_env and read_token_env are both {self.token_env}; who may read could steer: name another "
                "variable"
            )
        return self
