"""What the control channel steers: the run, and through it the stage that runs now.

The pipeline says which stage runs; a stage that can be resized attaches its own controls while it lasts. HTTP calls
come from other threads than the one that runs the stages.

    control/app.py (HTTP thread) ──▶ RunControls ──▶ StageControls of PPO, while attached
    pipeline   (main thread) ──▶     │
                                     └──▶ StopSignal, which the main thread looks at
"""

import os
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Protocol

from common.errors import ControlError, StageEndedError
from deploy.control.pace import Pace
from deploy.control.run_status import CheckpointInfo, RunStatus, SettingsRequest
from deploy.exit_codes import STOPPED
from deploy.stop_signal import StopSignal


class StageControls(Protocol):
    """What a stage with pools can be asked. Called from any thread; each call returns within seconds, or raises."""

    def status(self) -> RunStatus:
        """As it is now, from what is known: asks no process."""

    def scale(self, *, rollout_workers: int | None, reward_replicas: int | None) -> RunStatus:
        """Set the pools' targets and return; None leaves one as it is.

        Raises:
            ConfigError: fewer than the minimum are asked for.
        """

    def checkpoint(self) -> "Future[CheckpointInfo]":
        """Ask for a checkpoint at the next chance; resolves once it is written and verified, fails if it cannot be,
        or if the stage ends first. Whoever asks while one is on its way may get the same.
        """

    def pause(self, reason: str) -> RunStatus:
        """Let the run stand still once the running update is done; members stay."""

    def resume(self) -> RunStatus:
        """Go on; nothing where the run is not paused."""

    def change(self, wanted: SettingsRequest) -> RunStatus:
        """Change settings from the next update on.

        Raises:
            ConfigError: a setting that this run does not have, as a KL target where the coefficient is fixed.
        """


class Controls(StageControls, Protocol):
    """What a run can be asked."""

    def stop(self, reason: str) -> None:
        """Ask the run to end; returns at once."""


@dataclass(frozen=True, slots=True)
class RunFacts:
    """What every status of a run begins with."""

    run: str
    """Name."""
    pid: int
    """Process of the driver."""
    started_at: datetime
    """When the driver started, UTC."""


class RunControls:
    """The controls of a whole run: implements `Controls`.

    Args:
        run: its name.
        stop: looked at by whoever works.
    """

    def __init__(self, run: str, stop: StopSignal) -> None:
        self.facts = RunFacts(run, os.getpid(), datetime.now(UTC))
        self.stop_signal = stop
        self._stage: str | None = None
        self._pace = Pace()
        self._attached: StageControls | None = None

    @contextmanager
    def in_stage(self, stage: str) -> Iterator[None]:
        """Say which stage runs while the block runs."""
        self._stage, self._pace = stage, Pace()
        try:
            yield
        finally:
            self._stage, self._pace = None, Pace()

    def progress(self, step: int, total: int, message: str) -> None:
        """Told by the stage that runs, where it has no controls of its own."""
        self._pace.show(step, total, message)

    @contextmanager
    def attached(self, controls: StageControls) -> Iterator[None]:
        """Let the stage that runs answer for itself while the block runs; a late call may still come after it."""
        self._attached = controls
        try:
            yield
        finally:
            self._attached = None

    def status(self) -> RunStatus:
        """What the attached stage says; which stage runs where none is attached, or it ends while it is asked."""
        attached = self._attached
        if attached is not None:
            try:
                return attached.status()
            except StageEndedError:
                pass  # it ended while it was asked
        facts = self.facts
        return RunStatus(
            run=facts.run,
            pid=facts.pid,
            started_at=facts.started_at,
            stage=self._stage,
            progress=self._pace.progress(),
            stopping=self.stop_signal.reason,
        )

    def scale(self, *, rollout_workers: int | None, reward_replicas: int | None) -> RunStatus:
        """Resize the pools of the stage that runs; raises ControlError if it has none."""
        return self._pools().scale(rollout_workers=rollout_workers, reward_replicas=reward_replicas)

    def checkpoint(self) -> "Future[CheckpointInfo]":
        """Ask the stage that runs for a checkpoint; raises ControlError if it writes none."""
        return self._pools().checkpoint()

    def pause(self, reason: str) -> RunStatus:
        """Let the stage that runs stand still; raises ControlError if it cannot."""
        return self._pools().pause(reason)

    def resume(self) -> RunStatus:
        """Let it go on; raises ControlError if it cannot be paused."""
        return self._pools().resume()

    def change(self, wanted: SettingsRequest) -> RunStatus:
        """Change settings of the stage that runs; raises ControlError if it has none that may change."""
        return self._pools().change(wanted)

    def stop(self, reason: str) -> None:
        """Ask the run to end."""
        self.stop_signal.request(reason, STOPPED)

    def _pools(self) -> StageControls:
        attached = self._attached
        if attached is None:
            raise ControlError(
                f"{self.facts.run} is in stage {self._stage or '(between stages)'}, which has no pools, no "
                "checkpoints and no settings that may change; wait until `minichatgpt status` shows rollout workers"
            )
        return attached
