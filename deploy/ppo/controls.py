"""What PPO answers to the control channel: implements `deploy.control.run_controls.StageControls`, on any thread."""

import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any

from common.checkpoint import Checkpoint
from common.errors import ConfigError
from deploy.control.run_status import (
    AlarmStatus,
    AutoscalerStatus,
    CheckpointInfo,
    KLMeasure,
    LearnerStatus,
    MemberStatus,
    PoolStatus,
    RunStatus,
    SettingsRequest,
    SettingsStatus,
    WaitStatus,
)
from deploy.control.waiting import advice
from deploy.guards.rails import GuardRails
from deploy.place import Place
from deploy.ppo.checkpoint_writer import CheckpointWriter
from deploy.ppo.pulse import Cycle
from deploy.ppo.recovery import Recovery
from deploy.ppo.steering import Steering
from deploy.ppo.supervisor import Supervisor
from deploy.run_folder.event_log import EventLog
from deploy.runtime import HostedLearner
from deploy.stopwatch import Stopwatch


class PPOControls:
    """Looks at the run, resizes its pools, asks for checkpoints.

    Args:
        place: where it runs.
        supervisor: owner of the pools.
        learner: owner of the weights.
        writer: of checkpoints.
        watch: knows the phase of the loop.
        recovery: knows lineage and restarts.
        steering: knows the settings, and whether the run stands still.
        guards: knows what alarms are raised.
        log: is told of what was asked for.
    """

    def __init__(
        self,
        place: Place,
        *,
        supervisor: Supervisor,
        learner: HostedLearner,
        writer: CheckpointWriter,
        watch: Stopwatch,
        recovery: Recovery,
        steering: Steering,
        guards: GuardRails,
        log: EventLog,
    ) -> None:
        assert place.config.ppo is not None, "PPO is what is controlled"
        self._place = place
        self._updates = place.config.ppo.updates
        kl = place.config.ppo.kl
        self._kl_measure: KLMeasure = kl.measure if kl.type == "adaptive" else "kl_seq_sum"
        self._supervisor = supervisor
        self._learner = learner
        self._writer = writer
        self._watch = watch
        self._recovery = recovery
        self._steering = steering
        self._guards = guards
        self._log = log
        self.autoscaler: Callable[[], AutoscalerStatus | None] = lambda: None
        """What the autoscaler says of itself, where there is one."""

    def status(self) -> RunStatus:
        """The run as it is now."""
        facts, running = self._place.controls.facts, self._watch.running()
        newest, cycle = self._writer.newest, self._supervisor.lookout.pulse.cycle
        return RunStatus(
            run=facts.run,
            pid=facts.pid,
            started_at=facts.started_at,
            stage="ppo",
            stopping=self._place.stop.reason,
            step=self._learner.step,
            updates=self._updates,
            lineage=self._recovery.lineages.lineage,
            phase=None if running is None else running[0],
            phase_s=None if running is None else running[1],
            ledger=self._supervisor.ledger().as_dict(),
            newest_checkpoint=None if newest is None else self._info(newest),
            pools={role: _pool_status(pool) for role, pool in self._supervisor.describe().items()},
            learner=LearnerStatus(
                state="starting" if "pid" not in self._learner.described else running[0] if running else "idle",
                pid=self._learner.described.get("pid"),
                restarts=self._recovery.budget.total,
            ),
            pause=self._steering.pause_state,
            settings=SettingsStatus(**asdict(self._steering.settings)),
            kl_measure=self._kl_measure,
            latest={} if cycle is None else dict(cycle.metrics),
            tokens_per_s=None if cycle is None else cycle.tokens_per_s,
            waits=None if cycle is None else _waits(cycle),
            autoscaler=self.autoscaler(),
            alarms=tuple(
                AlarmStatus(guard=alarm.guard, since_step=alarm.since_step, text=alarm.text)
                for alarm in self._guards.alarms
            ),
            rollbacks=len(self._steering.journal.rollbacks),
        )

    def scale(self, *, rollout_workers: int | None, reward_replicas: int | None) -> RunStatus:
        """Change how many workers and replicas there shall be.

        Raises:
            ConfigError: fewer than the configuration's minimum.
        """
        config = self._place.config
        for name, wanted, least in (
            ("rollout workers", rollout_workers, config.rollout.min_workers),
            ("reward replicas", reward_replicas, config.reward_service.min_replicas),
        ):
            if wanted is not None and wanted < least:
                raise ConfigError(f"{wanted} {name} are fewer than the configured minimum of {least}; ask for more")
        asked = [f"{n} {name}" for n, name in ((rollout_workers, "rollout workers"), (reward_replicas, "reward "
                 "replicas")) if n is not None]  # fmt: skip
        self._log.write("scale", f"scale to {', '.join(asked)}")
        self._supervisor.resize(workers=rollout_workers, replicas=reward_replicas)
        return self.status()

    def pause(self, reason: str) -> RunStatus:
        """Stand still once the running update is done."""
        self._steering.pause(reason)
        return self.status()

    def resume(self) -> RunStatus:
        """Go on."""
        self._steering.resume()
        return self.status()

    def change(self, wanted: SettingsRequest) -> RunStatus:
        """Change settings from the next update on."""
        self._steering.change(wanted, reason=wanted.reason)
        return self.status()

    def checkpoint(self) -> "Future[CheckpointInfo]":
        """Ask for a checkpoint after the current update."""
        answer: Future[CheckpointInfo] = Future()

        def pass_on(done: "Future[Checkpoint]") -> None:
            if (error := done.exception()) is not None:
                answer.set_exception(error)
            else:
                answer.set_result(self._info(done.result()))

        self._writer.request().add_done_callback(pass_on)
        return answer

    def _info(self, checkpoint: Checkpoint) -> CheckpointInfo:
        age_s = max(0.0, time.time() - checkpoint.written_at)
        return CheckpointInfo(step=checkpoint.step, url=checkpoint.url, age_s=age_s)


def _waits(cycle: Cycle) -> WaitStatus:
    waits = WaitStatus(
        update_s=cycle.update_s,
        learner_wait_fraction=cycle.learner_wait,
        worker_idle_fraction=1.0 - cycle.busy.get("rollout", 0.0),
        reward_idle_fraction=1.0 - cycle.busy.get("reward", 0.0),
    )
    return waits.model_copy(update={"advice": advice(waits)})


def _pool_status(pool: dict[str, Any]) -> PoolStatus:
    return PoolStatus(
        target=pool["target"],
        active=pool["active"],
        members=tuple(
            MemberStatus(
                slot=slot["name"],
                state=slot["state"],
                is_waiting=slot["is_waiting"],
                node=slot["described"].get("node") or None,
                pid=slot["described"].get("pid"),
                weights=slot["weights"] or None,
                calls_held=slot["held"],
                restarts=slot["restarts"],
                heartbeat_age_s=slot["heartbeat_age_s"],
                last_error=slot["last_error"] or None,
                weights_age_s=slot["weights_age_s"],
                busy_fraction=slot["busy"],
                tokens_per_s=slot["tokens_per_s"],
                rss_bytes=slot["described"].get("rss_bytes"),
            )
            for slot in pool["slots"]
        ),
        queued=pool["queued"],
        queue_age_s=pool["queue_age_s"],
        queue_wait_p95_s=pool["queue_wait_p95_s"],
    )
