"""Why a process that was asked of Ray has no node yet, in one line: what it needs, and what each node has free.

Ray itself says nothing of this to who asked: an actor without a node is one that does not answer.
"""

from deploy.preflight.packing import Demand
from deploy.preflight.placements import state_of, wants
from deploy.preflight.ray_facts import live_nodes

_MAX_NODES_SHOWN = 6


def describe_lack(demand: Demand) -> str:
    """Of one process of a role, on the cluster as it is now."""
    nodes = live_nodes()
    room = [node for node in nodes if demand.finds_room(node)]
    if room:
        return f"{wants(demand)}, which is free on {room[0]}, so processes start slowly there"
    best = sorted(nodes, key=lambda node: (demand.may_use(node), demand.fits(node)), reverse=True)
    shown = [f"{node}: {state_of(demand, node)}" for node in best[:_MAX_NODES_SHOWN]]
    rest = [f"{len(nodes) - len(shown)} nodes more"] if len(nodes) > len(shown) else []
    return f"{wants(demand)}, and no node has that free ({' | '.join([*shown, *rest])})"
