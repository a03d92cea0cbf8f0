"""A cluster that adds nodes: what no node has now is a caution there, unless the autoscaler has no such node to add.

Open-source Ray (2.60) tells nobody what its autoscaler may add; managed ones tell it, in Ray's cluster configuration.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from common.config import RunConfig
from deploy.preflight.finding import Finding, show_amount
from deploy.preflight.packing import Amounts, Demand, fits

NODE_COMES_S = 300.0
"""Time that a new node may take, as an estimate, for none was measured: a machine boots, joins, and pulls an image of
several GB."""


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """Nodes of one kind, as the autoscaler may add them. Nothing is known of their labels."""

    name: str
    each: Amounts
    """Resources of one node; an amount without limit is infinite."""
    most: float
    """Nodes; without limit: infinite."""


@dataclass(frozen=True, slots=True)
class Growth:
    """All that the autoscaler may ever add, nodes that are there included."""

    groups: tuple[NodeGroup, ...]
    limits: Amounts
    """Of the whole cluster; what is not named has none."""

    def refuses(self, demand: Demand) -> str:
        """Why no process of a role will ever find a place; empty if one may."""
        if any(group.most > 0 and fits(_known(demand.needs, group.each), group.each) for group in self.groups):
            return ""
        kinds = "; ".join(
            f"{group.name}: " + ", ".join(f"{name} {show_amount(name, n)}" for name, n in group.each.items())
            for group in self.groups
        )
        return f"the autoscaler has no node for it either ({kinds})"

    def refuses_all(self, asked: Sequence[Demand]) -> str:
        """Why not all processes will ever find a place; empty if they may."""
        needed = needed_together(asked)
        most = {
            name: min(
                sum(group.most * group.each[name] for group in self.groups if group.each.get(name, 0) and group.most),
                self.limits.get(name, float("inf")),
            )
            for name in needed
        }
        known = needed if any("memory" in group.each for group in self.groups) else _known(needed, {})
        short = [name for name in known if not fits({name: needed[name]}, most)]
        there = " and ".join(f"{show_amount(name, most[name])} {name}" for name in short)
        return f"the autoscaler adds up to {there} and no more" if short else ""


def _known(needs: Amounts, each: Amounts) -> dict[str, float]:
    """Memory is left out where a group does not tell it: Ray finds it out once the node is there."""
    return {name: amount for name, amount in needs.items() if name != "memory" or name in each}


def needed_together(asked: Sequence[Demand]) -> dict[str, float]:
    """What all processes ask for in sum."""
    names = dict.fromkeys(name for demand in asked for name in demand.needs)
    return {name: sum(demand.needs.get(name, 0) * demand.number for demand in asked) for name in names}


def once_grown(finding: Finding, waiting: Sequence[Demand], config: RunConfig, growth: Growth | None) -> Finding:
    """What nodes that are still to come may mend, as a caution.

    Args:
        finding: on the nodes that are there.
        waiting: the roles that it is about: one, or all together.
        config: the run.
        growth: what may be added; None where Ray does not tell.
    """
    if not finding.failure:
        return finding
    if growth is not None:
        never = growth.refuses(waiting[0]) if len(waiting) == 1 else growth.refuses_all(waiting)
        if never:
            what, *lines = finding.failure.split("\n", 1)
            return Finding(finding.check, failure="\n".join([f"{what} And {never}.", *lines]))
    told = "it may add one" if growth is not None else "Ray does not tell what it may add"
    caution = f"it is left to the autoscaler (cluster.autoscaling), and {told}.{_patience(waiting, config)}"
    return Finding(finding.check, caution=f"{finding.failure}\n  {caution}")


def _patience(waiting: Sequence[Demand], config: RunConfig) -> str:
    """What to raise, so that nobody gives up before a node has come."""
    limits = {
        "rollout.room_timeout_s": config.rollout.room_timeout_s,
        "reward_service.room_timeout_s": config.reward_service.room_timeout_s,
        "learner.room_timeout_s": config.learner.room_timeout_s,
        "learner.stage_timeout_s": config.learner.stage_timeout_s,
    }
    roles = {demand.role for demand in waiting}
    short = [f"{key}={s:g}" for key, s in limits.items() if key.split(".")[0] in roles and s < NODE_COMES_S]
    return f" A node may take {NODE_COMES_S:g} s to come: raise {' and '.join(short)} to that or more." if short else ""
