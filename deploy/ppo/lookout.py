"""Looks at the pools for whoever watches the run: what was done, who is there, how old their weights are.

    actions of the conductor ──▶ see ──┐
    about once a second      ──▶ look ─┼──▶ MemberMetrics, Pulse
    batches and updates ──▶ handed_out, trained
    status ◀── describe

Used by the supervisor, in its thread; batches and updates are told in the loop's. It changes nothing of what it sees.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from common.member_metrics import MemberMetrics
from common.pool_actions import Action, Counted, Departed, Done, Start
from common.records import ChunkHandle, UpdateReport, WeightsHandle
from common.vitals import rss_bytes
from deploy.ppo.conductor import Conductor
from deploy.ppo.pulse import Pulse

LOOK_EVERY_S = 1.0
"""Time between two looks at the members."""


class Lookout:
    """Eyes on one conductor.

    Args:
        conductor: owner of the pools.
        metrics: of their members.
        learner: what the learner says of itself: its memory, where it has a process of its own.
        now: the time.
    """

    def __init__(
        self, conductor: Conductor, metrics: MemberMetrics, learner: Callable[[], Mapping[str, Any]], now: float
    ) -> None:
        self.conductor = conductor
        self.metrics = metrics
        self.pulse = Pulse()
        """How fast the run is, and who waits for whom."""
        self._learner = learner
        self._looked_at = now
        self._handed_out: list[tuple[int, int]] = []
        """Of the batch that was collected last: step of the weights, and samples."""

    def see(self, action: Action) -> None:
        """What the conductor asks for or reports."""
        match action:
            case Start(member, _):
                self.pulse.began(member.slot)
                self.metrics.joined(member.slot)
            case Done():
                self.pulse.answered(action)
                self.metrics.answered(action)
            case Counted():
                self.metrics.count(action)
            case Departed(slot):
                self.pulse.departed(slot)
                self.metrics.departed(slot)

    def published(self, weights: WeightsHandle, now: float) -> None:
        """Weights are published."""
        self.pulse.published(weights.identity, now)
        self.metrics.published(weights)

    def handed_out(self, handles: Sequence[ChunkHandle]) -> None:
        """A batch is complete."""
        stats = [(handle.rollout_stats.identity, handle.num_samples) for handle in handles]
        self._handed_out = [(identity.step, samples) for identity, samples in stats if identity is not None]

    def trained(self, report: UpdateReport) -> None:
        """That batch was trained on, unless nothing was finite."""
        for weights_step, samples in self._handed_out if report.is_finite else ():
            self.metrics.trained(weights_step, report.step - 1, samples)
        self._handed_out = []

    def describe(self, now: float) -> dict[str, dict[str, Any]]:
        """The pools as they are now, see Pool.describe; slots with the age of their weights and their speed."""
        both = (self.conductor.rollout, self.conductor.reward)
        pools: dict[str, dict[str, Any]] = {pool.role: pool.describe(now) for pool in both}
        cycle = self.pulse.cycle
        for slot in [slot for pool in pools.values() for slot in pool["slots"]]:
            held, name = slot["identity"], slot["name"]
            slot["weights_age_s"] = None if held is None else self.pulse.weights_age_s(held, now)
            slot["weights_lag"] = None if held is None else self.pulse.weights_lag(held)
            slot["busy"] = None if cycle is None else cycle.busy_of_slot.get(name)
            slot["tokens_per_s"] = self.pulse.tokens_per_s(name)
        return pools

    def look_if_due(self, now: float) -> None:
        """About once a second."""
        if now - self._looked_at >= LOOK_EVERY_S:
            self.look(now)

    def look(self, now: float) -> None:
        """Tell metrics and pulse who is there."""
        self._looked_at = now
        pools = self.describe(now)
        self.pulse.looked(
            {role: [s["name"] for s in pool["slots"] if s["state"] == "active"] for role, pool in pools.items()},
            {slot["name"]: slot["working_s"] for pool in pools.values() for slot in pool["slots"]},
        )
        memory = {"driver": rss_bytes()}
        if (size := self._learner().get("rss_bytes")) is not None:
            memory["learner"] = size
        self.metrics.looked(pools, memory)
