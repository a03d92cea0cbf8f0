"""Whether all processes of a run find a place together: exact arithmetic over nodes and the GPUs in them, no Ray.

Nodes differ, and so do the three roles; but processes of one role are alike. So a node is described by the most
replicas that it holds beside each possible number of learners and workers, and nodes are joined one after the other.
GPUs within a node are joined in the same way: a process cannot have half of one GPU and half of another.
"""

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from common.label_selector import unmet

SLACK = 1e-6  # 0.1 + 0.1 + 0.1 CPUs are 0.3

Amounts = Mapping[str, float]
Room = dict[tuple[int, int], int]
"""By learners and workers in a place: the most replicas beside them."""


@dataclass(frozen=True, slots=True)
class NodeFacts:
    """A node that is alive."""

    node_id: str
    """Hexadecimal."""
    address: str
    total: Amounts
    """Resources by Ray's names, memory in bytes."""
    free: Amounts
    """Of these, what nobody holds; one that is used up may be left out."""
    is_draining: bool = False
    """It is about to go: Ray places nothing more there."""
    labels: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return f"{self.address} ({self.node_id[:8]}{', draining' if self.is_draining else ''})"


@dataclass(frozen=True, slots=True)
class Demand:
    """What a role asks for."""

    role: str
    """Its table in the configuration."""
    needs: Amounts
    """Of one process."""
    number: int
    """Processes."""
    number_key: str = ""
    """Setting that says how many there are."""
    selector: Mapping[str, str] = field(default_factory=dict)
    """Labels that its nodes must have."""

    def unmet(self, node: NodeFacts) -> list[str]:
        """The names of the labels that are wrong on a node."""
        return unmet(self.selector, node.labels)

    def may_use(self, node: NodeFacts) -> bool:
        """Whether the labels of a node are right."""
        return not self.unmet(node)

    def fits(self, node: NodeFacts) -> bool:
        """Whether one process fits a node on which it is alone."""
        return self.may_use(node) and fits(self.needs, node.total)

    def finds_room(self, node: NodeFacts) -> bool:
        """Whether one process fits beside what is there now."""
        return self.may_use(node) and not node.is_draining and fits(self.needs, node.free)


def fits(needed: Amounts, there: Amounts) -> bool:
    """Whether one process with these needs fits."""
    return all(there.get(name, 0) + SLACK >= number for name, number in needed.items())


def left_out(asked: Sequence[Demand], nodes: Sequence[NodeFacts]) -> str:
    """Which processes find no place, however they are laid out; empty if all do."""
    if len(asked) == 1:
        return ""
    workers, replicas, learner = asked
    best = _join((_room_on(node, workers, replicas, learner) for node in nodes), workers.number)
    fitting = [placed for (learners, placed), room in best.items() if learners and room >= replicas.number]
    if not fitting:
        return f"the learner and {replicas.number} reward replicas do not all find a place"
    missing = workers.number - max(fitting)
    return f"{missing} of {workers.number} rollout workers find no place" if missing else ""


def _join(places: Iterable[Room], most_workers: int) -> Room:
    """All places together, which share no process."""
    best: Room = {(0, 0): 0}
    for place in places:
        joined: Room = {}
        for (learners, placed), before in best.items():
            for (more_learners, more), room in place.items():
                key = (learners + more_learners, placed + more)
                if key[0] <= 1 and key[1] <= most_workers:
                    joined[key] = max(joined.get(key, 0), before + room)
        best = joined
    return best


def _room_on(node: NodeFacts, workers: Demand, replicas: Demand, learner: Demand) -> Room:
    """What one node can hold, role by role only where its labels are right."""
    most = {
        demand.role: demand.number if demand.may_use(node) and fits(demand.needs, node.free) else 0
        for demand in (workers, replicas, learner)
    }
    gpus = _room_on_gpus(node, workers, replicas, learner)
    room: Room = {}
    for learners, placed in itertools.product(range(most[learner.role] + 1), range(most[workers.role] + 1)):
        left = dict(node.free)
        for demand, number in ((learner, learners), (workers, placed)):
            for name, amount in demand.needs.items():
                left[name] = left.get(name, 0) - number * amount
        if min(left.values(), default=0) < -SLACK:
            continue
        each = [int((left.get(name, 0) + SLACK) // amount) for name, amount in replicas.needs.items()]
        beside = min([most[replicas.role], *each])
        if gpus is None:
            room[learners, placed] = beside
        elif (learners, placed) in gpus:
            room[learners, placed] = min(beside, gpus[learners, placed])
    return room


def _room_on_gpus(node: NodeFacts, workers: Demand, replicas: Demand, learner: Demand) -> Room | None:
    """What the GPUs of a node can hold one by one; None where the sum is all that can be known.

    Ray tells the sum of what is free, not on which GPU it is, so this holds for nodes whose GPUs are all free.
    """
    asked = [demand.needs.get("GPU", 0.0) for demand in (learner, workers, replicas)]
    devices = int(node.total.get("GPU", 0))
    if not any(0 < gpus < 1 for gpus in asked) or node.free.get("GPU", 0) < node.total.get("GPU", 0) - SLACK:
        return None
    numbers = (learner.number, workers.number, replicas.number)
    parts = [gpus if gpus < 1 else 0.0 for gpus in asked]
    whole = [round(gpus) if gpus >= 1 else 0 for gpus in asked]
    one = _room_on_one_gpu(parts, numbers)
    room: Room = {}
    for used in range(devices + 1):
        shared = _join([one] * used, numbers[1])
        for learners, placed in itertools.product(range(numbers[0] + 1), range(numbers[1] + 1)):
            beside = shared.get((learners if parts[0] else 0, placed if parts[1] else 0))
            left = devices - used - learners * whole[0] - placed * whole[1]
            if beside is None or left < 0:
                continue
            replicas_here = beside if parts[2] else left // whole[2] if whole[2] else numbers[2]
            room[learners, placed] = max(room.get((learners, placed), 0), replicas_here)
    return room


def _room_on_one_gpu(parts: Sequence[float], numbers: Sequence[int]) -> Room:
    """Of processes that ask for a part of a GPU; those that ask for none do not count."""
    room: Room = {}
    learners = range(numbers[0] + 1 if parts[0] else 1)
    workers = range(numbers[1] + 1 if parts[1] else 1)
    for learner, placed in itertools.product(learners, workers):
        left = 1 - learner * parts[0] - placed * parts[1]
        if left >= -SLACK:
            room[learner, placed] = int((left + SLACK) // parts[2]) if parts[2] else 0
    return room
