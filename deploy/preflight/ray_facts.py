"""What a live Ray cluster tells the preflight: its nodes, what is free there, and what a process on each one sees."""

import functools
import math
from collections.abc import Mapping

import ray
import ray._private.state
from ray.exceptions import GetTimeoutError, RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from deploy.preflight.growth import Growth, NodeGroup
from deploy.preflight.packing import NodeFacts
from deploy.preflight.runtime_facts import RuntimeFacts
from deploy.preflight.storage_probe import Probe, ProbeAnswer, answer_probe

PROBE_TIMEOUT_S = 60.0
"""Longest time for a process on each node to start and to answer."""


@ray.remote(num_cpus=0, max_retries=0)
def answer(probe: Probe) -> ProbeAnswer:
    """Answer where this process is."""
    return answer_probe(probe)


def ray_facts() -> RuntimeFacts:
    """The cluster that this process has joined."""
    ask = functools.partial(ask_nodes, timeout_s=PROBE_TIMEOUT_S)
    return RuntimeFacts(nodes=live_nodes(), ask=ask, growth=known_growth())


def live_nodes() -> tuple[NodeFacts, ...]:
    """Nodes that are alive, with what is free on them now; Ray has no public call for the latter, nor for draining."""
    free = ray._private.state.available_resources_per_node()
    draining = ray._private.state.state.get_draining_nodes()
    return tuple(
        NodeFacts(
            node_id=node["NodeID"],
            address=node["NodeManagerAddress"],
            total=node["Resources"],
            free=free.get(node["NodeID"], {}),
            is_draining=node["NodeID"] in draining,
            labels=node["Labels"],
        )
        for node in ray.nodes()
        if node["Alive"]
    )


def known_growth() -> Growth | None:
    """What the autoscaler may add, where one has told Ray; -1 stands for no limit there."""
    told = ray._private.state.state.get_cluster_config()
    if told is None or not told.node_group_configs:
        return None
    groups = tuple(
        NodeGroup(
            group.name,
            {name: float(amount) for name, amount in group.resources.items()},
            math.inf if group.max_count < 0 else group.max_count,
        )
        for group in told.node_group_configs
    )
    return Growth(groups, {name: float(amount) for name, amount in told.max_resources.items()})


def ask_nodes(probes: Mapping[str, Probe], *, timeout_s: float) -> Mapping[str, ProbeAnswer | str]:
    """Carry out probes on nodes, all at once. They hold no CPUs, so that a busy node answers too.

    Args:
        probes: by node id.
        timeout_s: longest time for all of them.
    """
    refs = {
        node_id: answer.options(scheduling_strategy=NodeAffinitySchedulingStrategy(node_id, soft=False)).remote(probe)
        for node_id, probe in probes.items()
    }
    if refs:
        ray.wait(list(refs.values()), num_returns=len(refs), timeout=timeout_s)
    return {node_id: _result(ref, timeout_s) for node_id, ref in refs.items()}


def _result(ref: "ray.ObjectRef[ProbeAnswer]", timeout_s: float) -> ProbeAnswer | str:
    """An answer that has come, or why there is none."""
    try:
        found: ProbeAnswer = ray.get(ref, timeout=0)
    except GetTimeoutError:
        ray.cancel(ref, force=True)
        return f"no process answered within {timeout_s:g} s"
    except RayError as error:
        said = [line for line in str(error).splitlines() if line.strip()]
        return f"the process failed: {said[-1].strip()[:300] if said else type(error).__name__}"
    return found
