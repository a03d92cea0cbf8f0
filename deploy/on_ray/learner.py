"""The learner as a Ray actor, seen from the driver: every wait has a deadline, and a learner that is lost is an error
of its own, after which `restart` brings another one.
"""

import dataclasses
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayError

from common.checkpoint import ShardFiles
from common.config import RunConfig
from common.errors import (
    CheckpointError,
    CorruptWeightsError,
    LearnerLostError,
    LearnerTimeoutError,
    MemberFailedError,
    MiniChatGPTError,
    RunStopped,
)
from common.records import ChunkHandle, UpdateReport, WeightsHandle
from common.run_place import local_copy, shared
from common.run_settings import RunSettings
from deploy.on_ray.calls import CONTROL_TIMEOUT_S, cause_of, is_placed
from deploy.on_ray.postmortem import MemberFacts, describe_death
from deploy.on_ray.transport import STACKS_TIMEOUT_S, end_actor, member_facts
from deploy.on_ray.waiting import describe_lack
from deploy.preflight.placements import demand
from deploy.stop_signal import StopSignal
from deploy.stopwatch import Stopwatch

SLICE_S = 0.25
"""Time between two looks at heartbeats and at the wish to stop, while the learner works."""


class RayLearner:
    """Implements `common.ports.Learner`; payloads never pass through this process.

    Args:
        spawn: asks Ray for a learner actor, on another node than a given one.
        config: the run.
        watch: told how long calls take.
        stop: whether somebody wants the run to end; a running call then has `stop_timeout_s` left.
        logs: folder where stacks of a stuck learner go.
    """

    def __init__(
        self, spawn: Callable[[str], Any], config: RunConfig, *, watch: Stopwatch, stop: StopSignal, logs: Path
    ) -> None:
        self._spawn = spawn
        self._config = config
        self._watch = watch
        self._stop = stop
        self._logs = logs
        self._step = 0
        self._abandoned = ""
        """Phase that was not waited for to its end."""
        self._facts: dict[str, Any] = {}
        self._beat: Any = None
        self._beat_at = self._beat_sent_at = time.monotonic()
        self._actor = spawn("")
        self._ready: Any = self._actor.ready.remote()

    @property
    def step(self) -> int:
        """Updates done."""
        return self._step

    @property
    def described(self) -> dict[str, Any]:
        """What the learner said of itself when it was ready, and at its last heartbeat."""
        return dict(self._facts)

    def await_ready(self) -> None:
        """Wait until its model is loaded."""
        if self._ready is not None:
            self._await_room()
            limit = self._config.learner.start_timeout_s
            self._facts = self._wait(self._ready, "start", limit, beats=False)
            self._ready = None
            self._beat_at = self._beat_sent_at = time.monotonic()

    def _await_room(self) -> None:
        """Wait until a node has room; the time to start counts from then."""
        limit, start = self._config.learner.room_timeout_s, time.monotonic()
        while not ray.wait([self._ready], timeout=SLICE_S)[0] and not is_placed(self._actor):
            self._stop.raise_if_requested()
            if time.monotonic() - start > limit:
                raise LearnerTimeoutError(
                    f"no node has had room for the learner within {limit:g} s (learner.room_timeout_s): "
                    f"{describe_lack(demand('learner', self._config.learner))}",
                    "start",
                )

    def restart(self) -> None:
        """Another learner in a process of its own, with the weights before PPO until something is loaded."""
        end_actor(self._actor, self._facts)
        self._actor = self._spawn(self._facts.get("node", ""))
        self._facts, self._beat, self._step = {}, None, 0
        self._ready = self._actor.ready.remote()

    def load(self, url: str | None, *, lineage: int) -> None:
        """Go on from a checkpoint, or from the weights before PPO where there is none, as a new lineage."""
        self.await_ready()
        self._step = self._wait(self._actor.load.remote(url, lineage), "load", self._config.learner.save_timeout_s)

    def weights(self) -> WeightsHandle:
        """A handle whose buffer this process owns and does not hold."""
        self.await_ready()
        with self._watch.phase("publish"):
            buffer, handle = self._actor.weights.remote()
            ready: WeightsHandle = self._wait(handle, "weights", CONTROL_TIMEOUT_S)
        return dataclasses.replace(ready, ref=buffer)

    def prepare(self, chunks: Sequence[ChunkHandle]) -> list[int]:
        """Let the learner fetch the payloads; returns the positions of those that are lost."""
        with self._watch.phase("update"):
            lost: list[int] = self._wait(self._actor.prepare.remote(list(chunks)), "prepare", CONTROL_TIMEOUT_S)
        return lost

    def update(self, settings: RunSettings) -> UpdateReport:
        """Train on what was prepared."""
        with self._watch.phase("update"):
            updated = self._actor.update.remote(settings)
            report: UpdateReport = self._wait(updated, "update", self._config.learner.update_timeout_s)
        self._step = report.step
        return report

    def begin_save(self, url: str) -> "Future[ShardFiles]":
        """Copy the state now, write it in the background."""
        if self._abandoned:
            raise CheckpointError(f"{self._abandoned} is not over, so there is nothing whole to save")
        with self._watch.phase("snapshot"):
            self._wait(self._actor.snapshot.remote(), "snapshot", CONTROL_TIMEOUT_S, stoppable=False)
        outcome: Future[ShardFiles] = Future()
        actor, facts = self._actor, dict(self._facts)

        def hand_on(written: "Future[ShardFiles]") -> None:
            error = written.exception()
            if error is None:
                outcome.set_result(written.result())
                return
            cause, kind = cause_of(error)
            if kind == "died" and isinstance(cause, RayError):
                cause = LearnerLostError(describe_death(cause, member_facts("learner", "learner", "save", facts)))
            outcome.set_exception(cause)

        actor.write_snapshot.remote(url).future().add_done_callback(hand_on)
        return outcome

    def export(self, folder: Path) -> None:
        """Leave the policy in Hugging Face's format, where the learner is, and here."""
        self._wait(self._actor.export.remote(shared(folder)), "export", CONTROL_TIMEOUT_S)
        local_copy(shared(folder))

    def close(self) -> None:
        """End the process."""
        end_actor(self._actor, self._facts)

    def _wait(self, ref: Any, phase: str, timeout_s: float, *, beats: bool = True, stoppable: bool = True) -> Any:
        """A result, or LearnerLostError: it died, hangs or gives no sign of life."""
        start = time.monotonic()
        while not ray.wait([ref], timeout=SLICE_S)[0]:
            waited = time.monotonic() - start
            if waited > timeout_s:
                self._dump()
                raise LearnerTimeoutError(f"the learner has not finished {phase} within {timeout_s:g} s", phase)
            if beats:
                self._check_heart(phase)
            if stoppable and self._stop.requested and self._stop.seconds_since() > self._config.stop_timeout_s:
                self._abandoned = phase
                raise RunStopped(
                    f"{self._stop.reason}; {phase} was abandoned after {self._config.stop_timeout_s:g} s "
                    "(stop_timeout_s)",
                    reason=self._stop.reason or "",
                    exit_code=self._stop.exit_code,
                )
        self._beat_at = time.monotonic()
        try:
            return ray.get(ref, timeout=CONTROL_TIMEOUT_S)
        except RayError as error:
            cause, kind = cause_of(error)
            if kind == "died":
                raise LearnerLostError(describe_death(error, self._member(phase))) from error
            if isinstance(cause, CorruptWeightsError):
                raise LearnerLostError(f"the learner in {phase}: {cause}") from error
            if isinstance(cause, MiniChatGPTError):
                raise cause from error
            raise MemberFailedError(f"the learner failed in {phase}: {type(cause).__name__}: {cause}") from error

    def _member(self, phase: str) -> MemberFacts:
        return member_facts("learner", "learner", phase, {**self._facts, "beat_at": self._beat_at})

    def _check_heart(self, phase: str) -> None:
        """Signs of life are answered beside the work: without them the process is stopped, cut off or wedged."""
        now, limits = time.monotonic(), self._config.learner
        if self._beat is not None and ray.wait([self._beat], timeout=0)[0]:
            try:
                self._facts |= ray.get(self._beat, timeout=CONTROL_TIMEOUT_S)
            except RayError:
                return  # the call that is waited for fails in the same way, and says more
            finally:
                self._beat = None
            self._beat_at = now
        if self._beat is None and now - self._beat_at >= limits.heartbeat_every_s:
            self._beat, self._beat_sent_at = self._actor.heartbeat.remote(), now
        if self._beat is not None and now - self._beat_sent_at > limits.heartbeat_timeout_s:
            raise LearnerTimeoutError(
                f"the learner gave no sign of life for {now - self._beat_at:.0f} s in {phase} "
                f"(limit {limits.heartbeat_timeout_s:g} s, learner.heartbeat_timeout_s)",
                "heartbeat",
            )

    def _dump(self) -> None:
        try:
            text = ray.get(self._actor.stacks.remote(), timeout=STACKS_TIMEOUT_S)
        except (GetTimeoutError, RayError) as error:
            text = f"no stacks: {type(error).__name__}: {error}"
        self._logs.mkdir(parents=True, exist_ok=True)
        (self._logs / "stuck-learner.txt").write_text(text, encoding="utf-8")
