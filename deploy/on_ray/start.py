"""Starts a Ray cluster for a run, or joins one. Imports Ray and nothing else that is slow, see
`deploy/early_start.py`.
"""

import logging
import os
import warnings
from typing import Any

import ray

from common.config import RunConfig
from common.errors import ConfigError
from deploy.on_ray.address import connect

SPARE_MEMBERS = 8
"""Members that a local cluster has room for beyond those it starts with, so that `scale` works."""


def start_ray(config: RunConfig, *, address: str | None, insecure: bool = False) -> None:
    """Begin to use Ray in this process.

    Args:
        config: the run; a local cluster has the machine's CPUs, or as many logical ones as the roles may ask for.
        address: of a running cluster; None starts one on this machine, for this run alone.
        insecure: accept a running cluster beyond loopback that asks for no token.

    Raises:
        ConfigError: Ray is in use already, or cannot be reached; says what to change.
    """
    if ray.is_initialized():
        raise ConfigError("Ray is already in use by this process; call ray.shutdown() first")
    warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
    common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is not None:
        connect(address, insecure=insecure, **common)
        return
    if "RAY_AUTH_MODE" not in os.environ:
        raise ConfigError("call deploy.on_ray.environment.protect_local_cluster() before importing ray")
    if there := os.environ.get("RAY_ADDRESS"):
        raise ConfigError(f"RAY_ADDRESS is {there}; add --address auto to run there, or unset it")
    # Ray would begin with an idle process per logical CPU, none of which has the environment that our roles need
    system = {"prestart_worker_first_driver": False}
    # `local`: else Ray would join whatever `ray start` began on this machine
    ray.init(address="local", num_cpus=local_cpus(config), include_dashboard=False, _system_config=system, **common)


def local_cpus(config: RunConfig) -> int:
    """Logical CPUs of a local cluster: the machine's, or as many as the roles and some spare members ask for."""
    needed = (
        (config.rollout.workers + SPARE_MEMBERS) * config.rollout.num_cpus
        + config.reward_service.replicas * config.reward_service.num_cpus
        + config.learner.num_cpus
    )
    return max(os.cpu_count() or 1, int(-(-needed // 1)))
