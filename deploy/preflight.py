"""What can be known before anything starts: whether each role fits a node of the live cluster."""

from collections.abc import Sequence
from typing import Any

from common.config import RunConfig
from common.errors import ConfigError
from common.placement_config import Placement


def check_placements(config: RunConfig, nodes: Sequence[dict[str, Any]]) -> None:
    """Compare each role's request with what single nodes have.

    Args:
        config: the run.
        nodes: as `ray.nodes()` lists them.

    Raises:
        ConfigError: a role fits no node, or all roles together do not fit the cluster; names what is needed and there.
    """
    alive = [node["Resources"] for node in nodes if node["Alive"]]
    roles: dict[str, tuple[Placement, int]] = {
        "rollout": (config.rollout, config.rollout.workers),
        "reward_service": (config.reward_service, config.reward_service.replicas),
        "learner": (config.learner, 1),
    }
    totals = {"CPU": 0.0, "GPU": 0.0}
    for role, (placement, number) in roles.items():
        needed = {"CPU": placement.num_cpus, "GPU": placement.num_gpus}
        if not any(all(node.get(k, 0) >= v for k, v in needed.items()) for node in alive):
            largest = {k: max((node.get(k, 0) for node in alive), default=0) for k in needed}
            raise ConfigError(
                f"{role} needs num_cpus={needed['CPU']:g} and num_gpus={needed['GPU']:g} on one node; the largest of "
                f"{len(alive)} nodes have CPU={largest['CPU']:g} and GPU={largest['GPU']:g}; lower {role}.num_cpus "
                "or num_gpus, or add a node"
            )
        totals = {k: totals[k] + number * needed[k] for k in totals}
    there = {k: sum(node.get(k, 0) for node in alive) for k in totals}
    for resource, needed_in_all in totals.items():
        if needed_in_all > there[resource] + 1e-6:
            raise ConfigError(
                f"all roles together need {needed_in_all:g} {resource}, the cluster has {there[resource]:g}; "
                "lower rollout.workers, reward_service.replicas or what each asks for, or add nodes"
            )
