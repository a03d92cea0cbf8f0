"""The rollout autoscaler at work: feeds the policy with each update, and does what it decides by `scale`.

    recorder ─ updated(cycle) ─▶ Autoscaler ── Policy (pure) ──▶ controls.scale, as a person's order
                                     │    └─ why ─▶ events.jsonl, Prometheus, status
                 controls.status() ──┘

It sees the pool and resizes it through the same controls as HTTP does, and no other way; it starts no thread. It runs
in the loop's thread, between two updates; its status is read from any.
"""

import time
from collections.abc import Callable

from common.autoscaler_config import AutoscalerConfig
from common.metrics import RunMetrics
from deploy.autoscaler.decision import Decision, State
from deploy.autoscaler.forecast import Observation, rounds_of
from deploy.autoscaler.policy import Policy
from deploy.control.run_controls import StageControls
from deploy.control.run_status import AutoscalerStatus, RunStatus
from deploy.place import Place
from deploy.ppo.pulse import Cycle


class Autoscaler:
    """Asks for more or fewer rollout workers.

    Args:
        config: as configured; enabled.
        num_chunks: chunks of an update.
        controls: of the stage; asked for its status and to scale, and nothing else.
        metrics: told of every decision.
        note: told of those that change something, and of what keeps workers from being added.
        clock: seconds that only go forward.
    """

    def __init__(
        self,
        config: AutoscalerConfig,
        num_chunks: int,
        *,
        controls: StageControls,
        metrics: RunMetrics,
        note: Callable[[str, str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._policy = Policy(config, num_chunks)
        self._controls = controls
        self._metrics = metrics
        self._note = note
        self._clock = clock
        self._state = State()
        self._decision: Decision | None = None
        self._noted = ""
        """Cause of the last decision that was noted."""

    def updated(self, cycle: Cycle) -> None:
        """An update is recorded: decide, unless the run is about to stand still or to end."""
        status = self._controls.status()
        if status.stopping is not None or status.pause != "none" or status.step == status.updates:
            return
        self._state, decision = self._policy.observe(self._state, _observation(status, cycle, self._clock()))
        self._decision = decision
        self._metrics.autoscaled(decision.direction, decision.target)
        if decision.direction != "hold":
            self._note(
                "autoscale", f"scale {decision.direction} to {decision.target} rollout workers: {decision.reason}"
            )
            self._controls.scale(rollout_workers=decision.target, reward_replicas=None)
        elif decision.cause in ("replicas", "limit") and decision.cause != self._noted:
            self._note("autoscale", f"no more rollout workers: {decision.reason}")
        else:
            return
        self._noted = decision.cause

    def status(self) -> AutoscalerStatus:
        """Its bounds and its last decision."""
        config, decision = self._policy.config, self._decision
        return AutoscalerStatus(
            min_workers=config.min_workers,
            max_workers=self._policy.most,
            direction="hold" if decision is None else decision.direction,
            reason="it decides after the next update" if decision is None else decision.reason,
        )


def build_autoscaler(place: Place, controls: StageControls, *, note: Callable[[str, str], None]) -> Autoscaler | None:
    """The autoscaler of a PPO stage, if there shall be one."""
    config = place.config
    assert config.ppo is not None, "the pipeline runs the stages that the configuration names"
    if not config.autoscaler.enabled:
        return None
    if not place.runtime.are_processes:
        note("autoscale", "the autoscaler rests: with --local all rollout workers share one thread")
        return None
    num_chunks = rounds_of(config.ppo.trajectories_per_update, config.rollout.chunk_sequences)
    place.metrics.autoscaler(config.rollout.workers)
    return Autoscaler(config.autoscaler, num_chunks, controls=controls, metrics=place.metrics, note=note)


def _observation(status: RunStatus, cycle: Cycle, now_s: float) -> Observation:
    pool = status.pools["rollout"]
    return Observation(
        now_s=now_s,
        step=status.step or 0,
        update_s=cycle.update_s,
        learner_wait_fraction=cycle.learner_wait,
        evaluate_fraction=cycle.evaluate,
        worker_busy_fraction=cycle.busy.get("rollout", 0.0),
        reward_busy_fraction=cycle.busy.get("reward", 0.0),
        reward_queue_s=cycle.score_queued_s,
        active=pool.active,
        starting=sum(member.state in ("starting", "syncing") for member in pool.members),
        target=pool.target,
    )
