"""What the preflight is told of the place where a run is to run: plain data, and one call that reaches other nodes."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from deploy.preflight.growth import Growth
from deploy.preflight.packing import NodeFacts
from deploy.preflight.storage_probe import Probe, ProbeAnswer

AskNodes = Callable[[Mapping[str, Probe]], Mapping[str, ProbeAnswer | str]]
"""Probes by node id to answers; text where there is none: what went wrong."""


def ask_nobody(probes: Mapping[str, Probe]) -> Mapping[str, ProbeAnswer | str]:
    """There are no other nodes."""
    return {}


@dataclass(frozen=True, slots=True)
class RuntimeFacts:
    """The place where a run is to run. The default is one process, without Ray."""

    nodes: tuple[NodeFacts, ...] | None = None
    """Nodes of the cluster that are alive; None where everything is one process, or no cluster can be reached."""
    ask: AskNodes = ask_nobody
    """Carries out probes on nodes, all at once, within a deadline."""
    growth: Growth | None = None
    """What the autoscaler may add; None where there is none, or Ray does not tell."""
    unreachable: str = ""
    """Why the cluster cannot be reached; empty if it can, or if there is none."""
