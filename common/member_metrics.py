"""What Prometheus is told of the pools: calls that are answered, and once a second, who is there and what waits.

A member's series are named by its slot and begin with the slot: whoever replaces a dead member goes on with them, and
they go with the slot. Called in the supervisor's thread alone.
"""

import time
from collections.abc import Mapping
from typing import Any

from common.metric_families import Families, timed
from common.metric_labels import METHODS, OTHER, PHASES, PUBLISH_PARTS, STATES, UNSCORED, WAITS, bounded
from common.pool_actions import Counted, Done
from common.records import WeightsHandle

ROLE: Mapping[str, str] = {"worker": "rollout", "replica": "reward"}
"""By the first half of a slot's name."""
OF_EVERY_SLOT = ("busy_seconds", "calls_held", "heartbeat_age_seconds", "memory_bytes")
"""By role and slot."""
OF_WORKERS = (
    "generated_tokens", "prompt_tokens", "weights_step", "weights_lineage", "weights_age_seconds",
    "weights_lag_updates", "probe_gap_nats",
)  # fmt: skip
"""By slot."""


class MemberMetrics:
    """Metrics of both pools.

    Args:
        families: of the run.
    """

    def __init__(self, families: Families) -> None:
        self.families = families
        self._slots: set[str] = set()
        self._cpu_s = time.process_time()

    @timed
    def joined(self, slot: str) -> None:
        """A slot is filled; its counters begin at 0, or go on where it was filled before."""
        self._slots.add(slot)
        role = _role(slot)
        for name in ("busy_seconds", "calls_held"):
            self.families.begin(name, role, slot)
        if role == "rollout":
            for name in ("generated_tokens", "prompt_tokens"):
                self.families.begin(name, slot)

    @timed
    def departed(self, slot: str) -> None:
        """A slot is gone for good."""
        self._remove(slot)

    @timed
    def closed(self) -> None:
        """The pools are ended, and all that is in them."""
        for slot in list(self._slots):
            self._remove(slot)
        for role in METHODS:
            for state in STATES:
                self.families.set("members", 0, role, state)
            for name in ("members_target", "queue_length", "queue_age_seconds"):
                self.families.set(name, 0, role)

    def _remove(self, slot: str) -> None:
        self._slots.discard(slot)
        for name in OF_EVERY_SLOT:
            self.families.remove(name, _role(slot), slot)
        for name in OF_WORKERS:
            self.families.remove(name, slot)

    @timed
    def answered(self, done: Done) -> None:
        """A member has answered work; one that is lost meanwhile has no slot any more."""
        stats, role = done.stats, done.role
        for phase, seconds in stats.seconds.items():
            self.families.observe("phase_seconds", seconds, role, bounded(phase, PHASES[role]))
        self.families.observe("request_queue_seconds", done.queued_s, role, done.method)
        self.families.observe("request_seconds", done.took_s, role, done.method)
        if done.method == "generate":
            self._generated(done)
        elif done.method in ("score", "evaluate"):
            self.families.observe("reward_batch_samples", stats.samples)
            for score in stats.scores if done.method == "score" else ():
                self.families.observe("sample_score", score)
        if done.slot in self._slots:
            self.families.inc("busy_seconds", role, done.slot, by=sum(stats.seconds.values()))

    def _generated(self, done: Done) -> None:
        stats = done.stats
        for length in stats.response_lengths:
            self.families.observe("sample_response_tokens", length)
        paused = {part: stats.seconds[part] for part in PUBLISH_PARTS if part in stats.seconds}
        for part, seconds in (*paused.items(), *stats.beside.items()):
            self.families.observe("publish_seconds", seconds, part)
        if paused:
            self.families.observe("publish_seconds", sum(paused.values()), "pause")
        if stats.engine is not None:
            self.families.inc("engine_tokens", stats.engine, by=stats.response_tokens)
        if done.slot in self._slots:
            self.families.inc("generated_tokens", done.slot, by=stats.response_tokens)
            self.families.inc("prompt_tokens", done.slot, by=stats.prompt_tokens)
            self.families.set("probe_gap_nats", stats.probe_gap, done.slot)

    @timed
    def count(self, what: Counted) -> None:
        """Something that is only counted: restarts, resizes, deadlines, samples without a score."""
        match what.what:
            case "timeouts":
                self.families.inc("timeouts", what.role, bounded(what.label, WAITS[what.role]))
            case "unscored":
                self.families.inc("unscored_samples", bounded(what.label, UNSCORED), by=what.amount)
            case "restarts" | "resizes":
                self.families.inc(what.what, what.role, by=what.amount)

    @timed
    def published(self, weights: WeightsHandle) -> None:
        """Weights are published."""
        self.families.set("published_step", weights.identity.step)
        self.families.set("published_time_seconds", time.time())
        self.families.set("published_bytes", weights.size_bytes)

    @timed
    def trained(self, weights_step: int, learner_step: int, samples: int) -> None:
        """Samples that were generated by weights of one step were trained on at another."""
        self.families.observe("staleness_updates", learner_step - weights_step, times=samples)

    @timed
    def looked(self, pools: Mapping[str, Mapping[str, Any]], memory: Mapping[str, int]) -> None:
        """The pools as they are now, from Pool.describe; and the memory of driver and learner, where it is known."""
        for role, pool in pools.items():
            self.families.set("members_target", pool["target"], role)
            self.families.set("queue_length", pool["queued"], role)
            self.families.set("queue_age_seconds", pool["queue_age_s"], role)
            states = [slot["state"] for slot in pool["slots"]]
            for state in STATES:
                self.families.set("members", states.count(state), role, state)
            for slot in pool["slots"]:
                if slot["name"] in self._slots:
                    self._look_at(role, slot)
        for name, size in memory.items():
            self.families.set("memory_bytes", size, name, name)
        before, self._cpu_s = self._cpu_s, time.process_time()
        self.families.inc("busy_seconds", "driver", "driver", by=self._cpu_s - before)

    def _look_at(self, role: str, slot: Mapping[str, Any]) -> None:
        name, held = slot["name"], slot["identity"]
        self.families.set("calls_held", slot["held"], role, name)
        self._show("heartbeat_age_seconds", slot["heartbeat_age_s"], role, name)
        self._show("memory_bytes", slot["described"].get("rss_bytes"), role, name)
        if role != "rollout":
            return
        self._show("weights_step", None if held is None else held.step, name)
        self._show("weights_lineage", None if held is None else held.lineage, name)
        self._show("weights_age_seconds", slot["weights_age_s"], name)
        self._show("weights_lag_updates", slot["weights_lag"], name)

    def _show(self, name: str, value: float | None, *labels: str) -> None:
        """What is not known any more, as the memory of a member that died, has no series: its last value is no news."""
        if value is None:
            self.families.remove(name, *labels)
        else:
            self.families.set(name, value, *labels)


def _role(slot: str) -> str:
    return ROLE.get(slot.partition("-")[0], OTHER)
