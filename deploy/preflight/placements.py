"""Whether every role fits a node of the live cluster, and all roles together fit what is free. Arithmetic, no Ray.

On a cluster that adds nodes, what no node has now is a caution: the run begins, and its processes wait for a node. It
is refused only where Ray says that its autoscaler has no such node to add.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace

from common.config import RunConfig
from common.label_selector import NODE_ID
from common.placement_config import Placement
from deploy.preflight.finding import Finding, show_amount
from deploy.preflight.growth import Growth, needed_together, once_grown
from deploy.preflight.packing import Amounts, Demand, NodeFacts, fits, left_out

_MAX_NODES_SHOWN = 16
_TOGETHER = "all roles together"


def demands(config: RunConfig) -> list[Demand]:
    """The roles that the run starts: without PPO only the learner's resources are used, by the supervised stages."""
    learner = demand("learner", config.learner)
    if config.ppo is None:
        return [learner]
    rollout, rewards = config.rollout, config.reward_service
    return [
        demand("rollout", rollout, rollout.workers, "rollout.workers"),
        demand("reward_service", rewards, rewards.replicas, "reward_service.replicas"),
        learner,
    ]


def demand(role: str, placement: Placement, number: int = 1, number_key: str = "") -> Demand:
    """What processes of a role ask Ray for, by Ray's names."""
    asked = {"CPU": placement.num_cpus, "GPU": placement.num_gpus, "memory": float(placement.memory_bytes)}
    needs = {name: amount for name, amount in asked.items() if amount} | placement.resources
    return Demand(role, needs, number, number_key, placement.label_selector)


def check_placements(config: RunConfig, nodes: Sequence[NodeFacts], growth: Growth | None = None) -> list[Finding]:
    """Compare each role's request with single nodes, and all requests together with what is free.

    Args:
        config: the run.
        nodes: those that are alive.
        growth: what the autoscaler may add; None where there is none, or Ray does not tell.
    """
    usable = [node for node in nodes if not node.is_draining]
    asked = demands(config)
    found = [_one_role(demand, usable, nodes) for demand in asked]
    if not any(finding.failure for finding in found):
        found.append(_all_roles(asked, usable))
    if not config.cluster.autoscaling:
        return [*found, *_once_scaled(config, found, asked, usable)]
    return [
        once_grown(finding, waiting, config, growth)
        for finding, waiting in zip(found, [*([one] for one in asked), asked], strict=False)
    ]


def _once_scaled(
    config: RunConfig, found: Sequence[Finding], asked: Sequence[Demand], usable: Sequence[NodeFacts]
) -> Iterator[Finding]:
    """A caution where the run fits, but not with as many workers as the autoscaler may ask for."""
    most = config.autoscaler.max_workers
    if config.ppo is None or not config.autoscaler.enabled or any(finding.failure for finding in found):
        return
    workers, *others = asked
    scaled = _all_roles([replace(workers, number=most), *others], usable)
    if scaled.failure:
        caution = (
            f"autoscaler.max_workers={most} is more than the cluster has room for: workers beyond it would wait for a "
            f"node for rollout.room_timeout_s={config.rollout.room_timeout_s:g} s and be given up. Lower it, or add "
            "nodes; cluster.autoscaling = true says that nodes come by themselves"
        )
        yield Finding("the autoscaler's workers", caution=caution)


def _one_role(demand: Demand, usable: Sequence[NodeFacts], nodes: Sequence[NodeFacts]) -> Finding:
    right = [node for node in usable if demand.may_use(node)]
    lines, check = _lines(demand, nodes), f"{demand.role} on a node"
    if usable and not right:
        return Finding(check, failure=f"{_wrong_labels(demand, usable)}{lines}")
    keys = " or ".join(f"{demand.role}.{_setting(name)}" for name in _too_much(demand.needs, right))
    of = f"of {len(right)}" if len(right) == len(usable) else f"of the {len(right)} with these labels"
    if without := sum(fits(demand.needs, node.free) for node in usable if node not in right):
        lines = f" Without these labels it would fit {without} more: see {demand.role}.label_selector.{lines}"
    if not any(demand.fits(node) for node in right):
        return Finding(check, failure=f"{wants(demand)}; none {of} has it. Lower {keys}, or add a node.{lines}")
    free = sum(demand.finds_room(node) for node in right)
    if not free:
        return Finding(
            check,
            failure=f"{wants(demand)}; others hold what it needs. Wait for them, lower {keys}, or add a node.{lines}",
        )
    found = f"{wants(demand, on_one_node=False)}; free on {free} of {len(usable)} nodes"
    return Finding(check, found.removeprefix(f"{demand.role} "))


def wants(demand: Demand, *, on_one_node: bool = True) -> str:
    """As in `rollout needs num_cpus=4 on one node with market-type=spot`."""
    wanted = " and ".join(f"{_setting(name)}={show_amount(name, n)}" for name, n in demand.needs.items())
    labels = " and ".join(f"{key}={text}" for key, text in demand.selector.items())
    where = (" on one node" if on_one_node else "") + (f" with {labels}" if labels else "")
    return f"{demand.role} needs {wanted}{where}"


def _wrong_labels(demand: Demand, usable: Sequence[NodeFacts]) -> str:
    """What the labels in question are on the nodes, for these are often misspelt or of another case."""
    found = []
    for key in dict.fromkeys(key for node in usable for key in demand.unmet(node)):
        values = Counter(node.labels.get(key, "not set") for node in usable)
        found.append(f"{key} is " + ", ".join(f"{value} on {number}" for value, number in values.most_common(8)))
    there = sorted({key for node in usable for key in node.labels} - {NODE_ID})
    unknown = [key for key in demand.selector if not any(key in node.labels for node in usable)]
    names = f" The labels that nodes have: {', '.join(there) or 'none'}." if unknown else ""
    return (
        f"{wants(demand)}; none of {len(usable)} has these labels: {'; '.join(found)}.{names} Change "
        f"{demand.role}.label_selector, or add a node with them."
    )


def _too_much(needed: Amounts, nodes: Sequence[NodeFacts]) -> list[str]:
    """What no node has free in that amount; all of it where nodes have each, but none has all."""
    alone = [name for name, number in needed.items() if not any(fits({name: number}, node.free) for node in nodes)]
    return alone or list(needed)


def _setting(resource: str) -> str:
    """Where the configuration asks for it."""
    return {"CPU": "num_cpus", "GPU": "num_gpus", "memory": "memory_bytes"}.get(resource, f"resources.{resource}")


def _lines(demand: Demand, nodes: Sequence[NodeFacts]) -> str:
    """A line per node, the best first: what is needed and what is free of what it has, and which labels are wrong."""

    def good(node: NodeFacts) -> tuple[bool, int]:
        return demand.may_use(node), sum(fits({name: n}, node.free) for name, n in demand.needs.items())

    order = sorted(nodes, key=good, reverse=True)
    lines = [f"\n  {node}: {state_of(demand, node)}" for node in order[:_MAX_NODES_SHOWN]]
    rest = len(nodes) - len(lines)
    return "".join(lines) + (f"\n  … and {rest} more" if rest else "")


def state_of(demand: Demand, node: NodeFacts) -> str:
    """As in `CPU needed 4, free 1 of 8; market-type is on-demand`."""
    amounts = [
        f"{name} needed {show_amount(name, number)}, free {show_amount(name, node.free.get(name, 0))} of "
        f"{show_amount(name, node.total.get(name, 0))}"
        for name, number in demand.needs.items()
    ]
    return "; ".join([*amounts, *(f"{key} is {node.labels.get(key, 'not set')}" for key in demand.unmet(node))])


def _all_roles(asked: Sequence[Demand], usable: Sequence[NodeFacts]) -> Finding:
    """What single roles say on their own is not repeated here: each of them fits somewhere."""
    needed = needed_together(asked)
    free = {name: sum(node.free.get(name, 0) for node in usable) for name in needed}
    numbers = " or ".join(demand.number_key for demand in asked if demand.number_key)
    advice = (
        f"Lower {numbers or 'what it asks for'}, lower what each asks for, or add nodes; a run may also begin with "
        "fewer and be scaled once it runs"
    )
    short = [name for name in needed if not fits({name: needed[name]}, free)]
    if short:
        what = " and ".join(f"{show_amount(name, needed[name])} {name}" for name in short)
        there = " and ".join(f"{show_amount(name, free[name])} {name}" for name in short)
        lines = _lines(Demand("", {name: needed[name] for name in short}, 1), usable)
        failure = f"{_TOGETHER} need {what}; the cluster has {there} free. {advice}.{lines}"
        return Finding(_TOGETHER, failure=failure)
    if missing := left_out(asked, usable):
        labels = ", and labels keep roles apart" if any(demand.selector for demand in asked) else ""
        failure = f"{_TOGETHER} need no more than is free, but it lies in pieces{labels}: {missing}. {advice}."
        return Finding(_TOGETHER, failure=failure + _lines(Demand("", needed, 1), usable))
    shown = [
        f"{name} needed {show_amount(name, needed[name])}, free {show_amount(name, free[name])}" for name in needed
    ]
    return Finding(_TOGETHER, "; ".join(shown))
