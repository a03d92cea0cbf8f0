"""Whether every role fits a node of the live cluster, and all roles together fit what is free. Arithmetic, no Ray."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from common.config import RunConfig
from common.placement_config import Placement
from deploy.preflight.finding import Finding, show_amount

_SLACK = 1e-6  # 0.1 + 0.1 + 0.1 CPUs are 0.3
_MAX_NODES_SHOWN = 16

Amounts = Mapping[str, float]


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


def demands(config: RunConfig) -> list[Demand]:
    """The roles that the run starts: without PPO only the learner's resources are used, by the supervised stages."""
    learner = Demand("learner", needs(config.learner), 1)
    if config.ppo is None:
        return [learner]
    rollout, rewards = config.rollout, config.reward_service
    return [
        Demand("rollout", needs(rollout), rollout.workers, "rollout.workers"),
        Demand("reward_service", needs(rewards), rewards.replicas, "reward_service.replicas"),
        learner,
    ]


def needs(placement: Placement) -> dict[str, float]:
    """What one process asks Ray for, by Ray's names."""
    asked = {"CPU": placement.num_cpus, "GPU": placement.num_gpus, "memory": float(placement.memory_bytes)}
    return {name: number for name, number in asked.items() if number} | placement.resources


def fits(needed: Amounts, there: Amounts) -> bool:
    """Whether one process with these needs fits."""
    return all(there.get(name, 0) + _SLACK >= number for name, number in needed.items())


def check_placements(config: RunConfig, nodes: Sequence[NodeFacts]) -> list[Finding]:
    """Compare each role's request with single nodes, and all requests together with what is free.

    Args:
        config: the run.
        nodes: those that are alive.
    """
    usable = [node for node in nodes if not node.is_draining]
    asked = demands(config)
    found = [_one_role(demand, usable, nodes) for demand in asked]
    if not any(finding.failure for finding in found):
        found.append(_all_roles(asked, usable))
    return found


def _one_role(demand: Demand, usable: Sequence[NodeFacts], nodes: Sequence[NodeFacts]) -> Finding:
    wanted = " and ".join(f"{_setting(name)}={show_amount(name, n)}" for name, n in demand.needs.items())
    keys = " or ".join(f"{demand.role}.{_setting(name)}" for name in _too_much(demand.needs, usable))
    lines = _lines(demand.needs, nodes)
    check = f"{demand.role} on a node"
    if not any(fits(demand.needs, node.total) for node in usable):
        return Finding(
            check,
            failure=f"{demand.role} needs {wanted} on one node; none of {len(usable)} has it. Lower {keys}, or add a "
            f"node.{lines}",
        )
    free = sum(fits(demand.needs, node.free) for node in usable)
    if not free:
        return Finding(
            check,
            failure=f"{demand.role} needs {wanted} on one node; others hold what it needs. Wait for them, lower "
            f"{keys}, or add a node.{lines}",
        )
    return Finding(check, f"needs {wanted}; free on {free} of {len(usable)} nodes{lines}")


def _too_much(needed: Amounts, nodes: Sequence[NodeFacts]) -> list[str]:
    """What no node has free in that amount; all of it where nodes have each, but none has all."""
    alone = [name for name, number in needed.items() if not any(fits({name: number}, node.free) for node in nodes)]
    return alone or list(needed)


def _setting(resource: str) -> str:
    """Where the configuration asks for it."""
    return {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory_bytes"}.get(resource, f"resources.{resource}")


def _lines(needed: Amounts, nodes: Sequence[NodeFacts]) -> str:
    """A line per node, the best first: what is needed and what is free of what it has."""
    order = sorted(nodes, key=lambda node: sum(fits({name: n}, node.free) for name, n in needed.items()), reverse=True)
    lines = [
        f"\n  {node}: "
        + "; ".join(
            f"{name} needed {show_amount(name, number)}, free {show_amount(name, node.free.get(name, 0))} of "
            f"{show_amount(name, node.total.get(name, 0))}"
            for name, number in needed.items()
        )
        for node in order[:_MAX_NODES_SHOWN]
    ]
    rest = len(nodes) - len(lines)
    return "".join(lines) + (f"\n  … and {rest} more" if rest else "")


def _all_roles(asked: Sequence[Demand], usable: Sequence[NodeFacts]) -> Finding:
    """What single roles say on their own is not repeated here: each of them fits somewhere."""
    check = "all roles together"
    names = dict.fromkeys(name for demand in asked for name in demand.needs)
    needed = {name: sum(demand.needs.get(name, 0) * demand.number for demand in asked) for name in names}
    free = {name: sum(node.free.get(name, 0) for node in usable) for name in names}
    numbers = " or ".join(demand.number_key for demand in asked if demand.number_key)
    advice = (
        f"Lower {numbers or 'what it asks for'}, lower what each asks for, or add nodes; a run may also begin with "
        "fewer and be scaled once it runs"
    )
    short = [name for name in names if not fits({name: needed[name]}, free)]
    if short:
        what = " and ".join(f"{show_amount(name, needed[name])} {name}" for name in short)
        there = " and ".join(f"{show_amount(name, free[name])} {name}" for name in short)
        lines = _lines({name: needed[name] for name in short}, usable)
        return Finding(check, failure=f"all roles together need {what}; the cluster has {there} free. {advice}.{lines}")
    if missing := left_out(asked, usable):
        lines = _lines(needed, usable)
        return Finding(
            check,
            failure=f"all roles together need no more than is free, but it lies in pieces: {missing}. {advice}.{lines}",
        )
    shown = [f"{name} needed {show_amount(name, needed[name])}, free {show_amount(name, free[name])}" for name in names]
    return Finding(check, "; ".join(shown))


def left_out(asked: Sequence[Demand], nodes: Sequence[NodeFacts]) -> str:
    """Which processes find no place, however they are laid out; empty if all do."""
    if len(asked) == 1:
        return ""
    workers, replicas, learner = asked
    best = {(0, 0): 0}  # learners and workers placed so far, and the most replicas that fit beside them
    for node in nodes:
        joined: dict[tuple[int, int], int] = {}
        for (learners, placed), before in best.items():
            for (more_learners, more), room in _options(node.free, workers, replicas, learner).items():
                key = (learners + more_learners, placed + more)
                if key[0] <= 1 and key[1] <= workers.number:
                    joined[key] = max(joined.get(key, 0), before + room)
        best = joined
    fitting = [placed for (learners, placed), room in best.items() if learners and room >= replicas.number]
    if not fitting:
        return f"the learner and {replicas.number} reward replicas do not all find a place"
    missing = workers.number - max(fitting)
    return f"{missing} of {workers.number} rollout workers find no place" if missing else ""


def _options(free: Amounts, workers: Demand, replicas: Demand, learner: Demand) -> dict[tuple[int, int], int]:
    """What one node can hold: the most replicas beside each possible number of learners and workers."""
    options = {}
    for learners, placed in itertools.product((0, 1), range(workers.number + 1)):
        left = dict(free)
        for demand, number in ((learner, learners), (workers, placed)):
            for name, amount in demand.needs.items():
                left[name] = left.get(name, 0) - number * amount
        if min(left.values(), default=0) >= -_SLACK:
            each = [int((left.get(name, 0) + _SLACK) // amount) for name, amount in replicas.needs.items()]
            options[learners, placed] = min([replicas.number, *each])
    return options
