"""What a run tells Prometheus: one small method for each thing that happens. The metrics are those of the catalogue.

    Stats beside payloads ─▶ supervisor ─▶ MemberMetrics ┐
    UpdateReport ─▶ recorder, checkpoints, steering ─▶ RunMetrics ─▶ registry ─▶ GET /metrics

All of it runs in the driver, on any thread. What pools and their members say is in member_metrics.py.
"""

import time
from collections.abc import Mapping

from prometheus_client import CollectorRegistry

from common.member_metrics import MemberMetrics
from common.metric_families import Families, timed
from common.metric_labels import DROPPED, LOOP_PHASES, OTHER, PHASES, ROUTES_AT_MOST, WAITS, bounded, word
from common.records import Identity, UpdateReport
from common.run_settings import RunSettings
from common.supervision import Ledger


class RunMetrics:
    """The metrics of one run.

    Args:
        registry: where they are declared; a fresh one per run.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self.families = Families(registry)
        self.members = MemberMetrics(self.families)
        """Of the pools and who is in them."""
        self._routes: set[str] = set()
        self.families.set("paused", 0)

    # --- the run

    @timed
    def build(self, *, version: str, python: str, torch: str, ray: str) -> None:
        """Which software runs."""
        self.families.set("build_info", 1, version, python, torch, ray)

    @timed
    def run(self, name: str, runtime: str) -> None:
        """What runs, and where: `local` or `ray`."""
        self.families.set("run_info", 1, name, runtime)

    @timed
    def began(self, identity: Identity, planned: int, *, max_staleness: int) -> None:
        """The PPO stage begins, or goes on, from these weights."""
        now = time.time()
        for name in ("start_time_seconds", "last_update_time_seconds", "checkpoint_time_seconds"):
            self.families.set(name, now)
        self.families.set("checkpoint_step", 0)
        self.families.set("checkpoint_bytes", 0)
        self.families.set("over_optimised", 0)
        self.families.set("updates_planned", planned)
        self.families.set("max_staleness", max_staleness)
        self._show(identity)

    @timed
    def went_back(self, identity: Identity) -> None:
        """Training goes on from the weights of a checkpoint, as a new lineage."""
        self._show(identity)

    def _show(self, identity: Identity) -> None:
        self.families.set("step", identity.step)
        self.families.set("lineage", identity.lineage)

    @timed
    def event(self, name: str) -> None:
        """Something happened that an operator wants to know."""
        self.families.inc("events", word(name))

    # --- steering and guard rails

    @timed
    def settings(self, settings: RunSettings) -> None:
        """The settings in force; those that this run has not are left out."""
        for name, value in settings.present().items():
            self.families.set("setting", value, name)
            self.families.begin("setting_changes", name)

    @timed
    def setting_changed(self, name: str) -> None:
        """An operator or a guard rail has changed a setting."""
        self.families.inc("setting_changes", word(name))

    @timed
    def paused(self, is_paused: bool) -> None:
        """Whether the run stands still because somebody wants it to."""
        self.families.set("paused", is_paused)

    @timed
    def guard_alarm(self, guard: str, raised: bool) -> None:
        """Whether a guard rail is raised; told of each at the start, so that its series is there."""
        self.families.set("guard_alarm", raised, word(guard))

    @timed
    def guard_action(self, guard: str, action: str) -> None:
        """A guard rail did something."""
        self.families.inc("guard_actions", word(guard), word(action))

    @timed
    def rolled_back(self) -> None:
        """A guard rail went back to a checkpoint."""
        self.families.inc("rollbacks")

    @timed
    def autoscaler(self, target: int) -> None:
        """There is an autoscaler, and so many workers are wanted at its start."""
        self.families.set("autoscaler_target", target, "rollout")
        for direction in ("up", "down", "hold"):
            self.families.begin("autoscaler_decisions", direction)

    @timed
    def autoscaled(self, direction: str, target: int) -> None:
        """The autoscaler has decided."""
        self.families.inc("autoscaler_decisions", word(direction))
        self.families.set("autoscaler_target", target, "rollout")

    @timed
    def control_request(self, route: str, status: int) -> None:
        """A request to the control channel was answered. `route` is one of the server's own, as `/v1/run/scale`."""
        if route not in self._routes:
            if len(self._routes) < ROUTES_AT_MOST and route.startswith("/"):
                self._routes.add(route)
            else:
                route = OTHER
        self.families.inc("control_requests", route, str(status))

    # --- learning

    @timed
    def update(self, report: UpdateReport) -> None:
        """What the learner says of an update."""
        self.families.inc("nonfinite_steps", by=report.metrics.get("nonfinite_steps", 0.0))
        if not report.is_finite:
            return
        self.families.inc("updates")
        self.families.inc("trained_tokens", by=report.metrics.get("response_tokens", 0.0))
        self.families.set("last_update_time_seconds", time.time())
        self._show(report.identity)
        for key, value in report.metrics.items():
            self.families.report(key, value)
        for phase, seconds in report.seconds.items():
            self.families.observe("phase_seconds", seconds, "learner", bounded(phase, PHASES["learner"]))

    @timed
    def cycle(self, seconds: Mapping[str, float], update_s: float, busy: Mapping[str, float]) -> None:
        """Where the time between two updates went.

        Args:
            seconds: by phase; the loop's own are picked out.
            update_s: in all, without pauses.
            busy: by role, the share of it in which the role worked.
        """
        for phase in LOOP_PHASES:
            if phase in seconds:
                self.families.inc("loop_seconds", phase, by=seconds[phase])
        if "publish" in seconds:
            taken = seconds["publish"] + seconds.get("flatten", 0.0)  # the hash is taken at the end of the update
            self.families.observe("publish_seconds", taken, "take")
        self.families.observe("update_seconds", update_s)
        worked = sum(seconds.get(phase, 0.0) for phase in ("update", "publish", "snapshot"))
        self.families.inc("busy_seconds", "learner", "learner", by=worked)
        for role, share in busy.items():
            self.families.set("busy_ratio", share, role)

    @timed
    def evaluation(self, step: int, numbers: Mapping[str, float], *, over_optimised: bool) -> None:
        """What the policy did on held-out prompts after an update."""
        self.families.set("evaluation_step", step)
        self.families.set("over_optimised", over_optimised)
        for key, value in numbers.items():
            self.families.report(f"evaluation.{key}", value)

    # --- what must not be lost

    @timed
    def ledger(self, ledger: Ledger) -> None:
        """Where every sample is."""
        self.families.set("samples_dispatched", ledger.dispatched)
        self.families.set("samples_duplicate", ledger.duplicates)
        for fate in ("trained", "rolled_back", "buffered", "in_flight"):
            self.families.set("samples", getattr(ledger, fate), fate, "")
        dropped: dict[str, int] = {}
        for reason, samples in ledger.dropped.items():
            known = bounded(reason, DROPPED)
            dropped[known] = dropped.get(known, 0) + samples
        for reason, samples in dropped.items():
            self.families.set("samples", samples, "dropped", reason)
        self.families.set("ledger_mismatch_samples", ledger.mismatch)

    @timed
    def checkpoint(self, step: int, written_at: float, size: int) -> None:
        """The newest checkpoint: its update, Unix time and bytes."""
        self.families.set("checkpoint_step", step)
        self.families.set("checkpoint_time_seconds", written_at)
        self.families.set("checkpoint_bytes", size)

    @timed
    def saved(self, part: str, seconds: float) -> None:
        """A part of a save is done: `snapshot` or `write`."""
        self.families.observe("checkpoint_seconds", seconds, part)

    @timed
    def save_failed(self) -> None:
        """A checkpoint could not be written."""
        self.families.inc("checkpoint_failures")

    @timed
    def learner_lost(self, timed_out_in: str) -> None:
        """Another learner starts; empty where no deadline was the cause, else what was waited for."""
        self.families.inc("restarts", "learner")
        if timed_out_in:
            self.families.inc("timeouts", "learner", bounded(timed_out_in, WAITS["learner"]))
