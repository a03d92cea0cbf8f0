"""Starts the place where a run is to run, and lets nobody have it before the preflight has passed."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from common.config import RunConfig
from common.errors import ConfigError
from deploy.on_ray.environment import protect_local_cluster
from deploy.on_ray.openness import be_explicit, refuse_open_local
from deploy.preflight.finding import Finding
from deploy.preflight.preflight import examine, raise_failures
from deploy.preflight.runtime_facts import RuntimeFacts
from deploy.runtime import Runtime
from deploy.scorer_secrets import scorer_secrets

if TYPE_CHECKING:
    from deploy.on_ray.early_actors import EarlyActors


def open_runtime(
    config: RunConfig,
    *,
    local: bool,
    address: str | None,
    insecure: bool = False,
    early: "EarlyActors | None" = None,
) -> Runtime:
    """One process, a cluster of our own, or one that is there; Ray is imported only where it is used.

    Raises:
        ConfigError: the cluster cannot be reached, or a scorer's token is not set; says why.
    """
    scorer_secrets(config, os.environ)  # one that is missing shall not come up hours later
    if local:
        from deploy.local import LocalRuntime

        return LocalRuntime()
    if address is None:
        protect_local_cluster()
        refuse_open_local(os.environ, insecure=insecure)
    else:
        be_explicit()
    from deploy.cluster import RayRuntime

    return RayRuntime(config, address=address, insecure=insecure, early=early)


def checked_runtime(
    config: RunConfig,
    folder: Path,
    *,
    local: bool,
    address: str | None,
    warn: Callable[[str], None],
    insecure: bool = False,
    early: "EarlyActors | None" = None,
) -> Runtime:
    """A place that can carry the run.

    Args:
        config: the run.
        folder: of the run.
        local: everything in one process.
        address: of a running cluster; None: there is none.
        warn: told what may still be in the way.
        insecure: whether a cluster beyond loopback may be open to everybody.
        early: what `start_early` returned, where it has started the cluster.

    Raises:
        ConfigError: something is in the way; one message per failure. Nothing is left running.
    """
    runtime, found = examined_runtime(config, folder, local=local, address=address, insecure=insecure, early=early)
    try:
        raise_failures(config, found)
    except ConfigError:
        if runtime is not None:
            runtime.close()
        raise
    assert runtime is not None, "an unreachable cluster is a failure"
    for finding in found:
        if finding.caution:
            warn(finding.caution)
    return runtime


def examined_runtime(
    config: RunConfig,
    folder: Path,
    *,
    local: bool,
    address: str | None,
    insecure: bool = False,
    early: "EarlyActors | None" = None,
) -> tuple[Runtime | None, list[Finding]]:
    """The place, None where it cannot be reached, and all that the preflight found."""
    try:
        runtime = open_runtime(config, local=local, address=address, insecure=insecure, early=early)
    except ConfigError as error:
        return None, examine(config, folder, RuntimeFacts(unreachable=str(error)))
    return runtime, examine(config, folder, runtime.facts())
