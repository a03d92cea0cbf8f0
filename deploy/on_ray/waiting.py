"""Why a process that was asked of Ray is not there yet: what it needs, what is free, and since when it waits.

Ray itself says nothing of this to who asked: an actor without a place is one that does not answer.
"""

import time

import ray
import ray._private.state

from deploy.preflight.packing import Demand
from deploy.preflight.placements import state_of, wants
from deploy.preflight.ray_facts import live_nodes

_MAX_NODES_SHOWN = 6


def unplaced() -> frozenset[str]:
    """Hexadecimal ids of this run's actors that have no process yet."""
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    return frozenset(ray._private.state.actors(job_id=job, actor_state_name="PENDING_CREATION"))


def describe_waiting(demand: Demand, asked_at: float) -> str:
    """One line, for an error.

    Args:
        demand: of the role.
        asked_at: when the process was asked for, by `time.time`.
    """
    nodes = live_nodes()
    room = [node for node in nodes if demand.finds_room(node)]
    since = f"it waits since {time.strftime('%H:%M:%S', time.localtime(asked_at))} for Ray to start it"
    if room:
        return f"{since}: {wants(demand)}, which is free on {room[0]}, so its process is slow to start there"
    best = sorted(nodes, key=lambda node: (demand.may_use(node), demand.fits(node)), reverse=True)
    shown = [f"{node}: {state_of(demand, node)}" for node in best[:_MAX_NODES_SHOWN]]
    rest = [f"{len(nodes) - len(shown)} nodes more"] if len(nodes) > len(shown) else []
    return f"{since}: {wants(demand)}, and no node has that free ({' | '.join([*shown, *rest])})"
