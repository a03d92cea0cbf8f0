"""Everything on Ray: a local cluster of our own, or one that is already there.

Actors are owned one by one, never restarted by Ray (their state would be gone), and every wait has a deadline.
"""

import dataclasses
import logging
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import GetTimeoutError, RayActorError, RayError, RayTaskError

from actors.ray_actor import RolloutActor
from common.config import RunConfig
from common.errors import ConfigError, MemberFailedError, MiniChatGPTError, PhaseTimeoutError
from common.placement_config import Placement
from common.ports import Call, Reply
from common.records import ChunkHandle, Identity, ModelPaths, Progress, StageResult, UpdateReport, WeightsHandle
from deploy.preflight_ray import ray_facts
from deploy.ray_address import connect
from deploy.ray_environment import THREADS
from deploy.runtime import Members
from deploy.runtime_facts import RuntimeFacts
from deploy.stopwatch import Stopwatch
from learner.ray_actor import LearnerActor, run_stage
from learner.stages import StageRequest
from reward_service.ray_actor import RewardActor

CONTROL_TIMEOUT_S = 300.0
"""Longest time of a call that only moves weights or writes files."""


def options(placement: Placement) -> dict[str, Any]:
    """Ray options of a process with this placement."""
    return {
        "num_cpus": placement.num_cpus,
        "num_gpus": placement.num_gpus,
        "memory": placement.memory_bytes or None,
        "resources": placement.resources or None,
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(placement.threads), **THREADS}},
    }


def spawn(actor_class: Any, placement: Placement, *arguments: Any) -> Any:
    """Ask Ray for an actor; returns its handle at once."""
    return actor_class.options(**options(placement)).remote(*arguments)


def cause_of(error: RayError) -> BaseException:
    """The error that was raised in the other process, or Ray's own where the process is gone."""
    cause: BaseException = error.cause if isinstance(error, RayTaskError) and error.cause is not None else error
    return cause


def wait_for(ref: Any, *, role: str, phase: str, timeout_s: float) -> Any:
    """`ray.get` with a deadline and an error that names role and phase.

    Raises:
        PhaseTimeoutError: nothing came in time.
        MemberFailedError: the process died, or raised an error that is none of ours.
    """
    try:
        return ray.get(ref, timeout=timeout_s)
    except GetTimeoutError as error:
        free = {k: v for k, v in ray.available_resources().items() if k in ("CPU", "GPU")}
        raise PhaseTimeoutError(f"{role} has not finished {phase} within {timeout_s:.0f} s; free: {free}") from error
    except RayError as error:
        cause = cause_of(error)
        if isinstance(cause, MiniChatGPTError):
            raise cause from error
        died = "died" if isinstance(error, RayActorError) else "failed"
        raise MemberFailedError(f"{role} {died} in {phase}: {type(cause).__name__}: {cause}") from error


class RayTransport:
    """Carries calls to Ray actors; a reply's payload is an object reference.

    Args:
        members: actor handles by role and name.
    """

    def __init__(self, members: dict[tuple[str, str], Any]) -> None:
        self._members = members
        self._open: dict[Any, tuple[int, Any]] = {}

    def send(self, call: Call) -> None:
        """Start a remote call."""
        method = getattr(self._members[call.role, call.member], call.method)
        payload, stats = method.remote(call.argument)
        self._open[stats] = (call.call_id, payload)

    def wait(self, timeout_s: float) -> list[Reply]:
        """Replies in the order in which they come."""
        done, _ = ray.wait(list(self._open), num_returns=1, timeout=timeout_s)
        replies = []
        for ref in done:
            call_id, payload = self._open.pop(ref)
            try:
                replies.append(Reply(call_id, payload, ray.get(ref, timeout=CONTROL_TIMEOUT_S)))
            except RayError as error:
                replies.append(Reply(call_id, error=cause_of(error)))
        return replies

    def fetch(self, ref: Any, timeout_s: float) -> Any:
        """The payload from the object store."""
        return wait_for(ref, role="driver", phase="fetch", timeout_s=timeout_s)


class RayLearner:
    """The learner actor: implements `common.ports.Learner`; payloads never pass through this process."""

    def __init__(self, actor: Any, config: RunConfig, watch: Stopwatch) -> None:
        self._watch = watch
        self._actor = actor
        self._update_timeout_s = config.learner.update_timeout_s
        self._step = 0

    @property
    def step(self) -> int:
        """Updates done."""
        return self._step

    def weights(self) -> WeightsHandle:
        """A handle whose buffer this process owns and does not hold."""
        with self._watch.phase("publish"):
            buffer, handle = self._actor.weights.remote()
            ready: WeightsHandle = wait_for(handle, role="learner", phase="weights", timeout_s=CONTROL_TIMEOUT_S)
        return dataclasses.replace(ready, ref=buffer)

    def update(self, chunks: Sequence[ChunkHandle]) -> UpdateReport:
        """Let the learner fetch the payloads, then train on them."""
        with self._watch.phase("update"):
            prepared = self._actor.prepare.remote(list(chunks))
            wait_for(prepared, role="learner", phase="prepare", timeout_s=CONTROL_TIMEOUT_S)
            updated = self._actor.update.remote()
            report: UpdateReport = wait_for(updated, role="learner", phase="update", timeout_s=self._update_timeout_s)
        self._step = report.step
        return report

    def save(self, folder: Path) -> None:
        """Write a checkpoint, where the learner is."""
        wait_for(self._actor.save.remote(str(folder)), role="learner", phase="save", timeout_s=CONTROL_TIMEOUT_S)

    def export(self, folder: Path) -> None:
        """Leave the policy in Hugging Face's format, where the learner is."""
        wait_for(self._actor.export.remote(str(folder)), role="learner", phase="export", timeout_s=CONTROL_TIMEOUT_S)


class RayRuntime:
    """A Ray cluster.

    Args:
        config: the run; a local cluster has the machine's CPUs, or as many logical ones as the roles ask for.
        address: of a running cluster; None starts one on this machine, for this run alone.
    """

    name = "ray"

    def __init__(self, config: RunConfig, *, address: str | None = None) -> None:
        if ray.is_initialized():
            raise ConfigError("Ray is already in use by this process; call ray.shutdown() first")
        warnings.filterwarnings("ignore", category=FutureWarning, module="ray")
        common: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
        if address is None:
            if "RAY_AUTH_MODE" not in os.environ:
                raise ConfigError("call deploy.ray_environment.protect_local_cluster() before importing ray")
            if there := os.environ.get("RAY_ADDRESS"):
                raise ConfigError(f"RAY_ADDRESS is {there}; add --address auto to run there, or unset it")
            ray.init(num_cpus=local_cpus(config), include_dashboard=False, **common)
        else:
            connect(address, **common)

    def facts(self) -> RuntimeFacts:
        """For the preflight."""
        return ray_facts()

    def run_stage(self, request: StageRequest) -> Iterator[Progress | StageResult]:
        """Run a supervised stage in a process with the learner's resources."""
        limit = request.config.learner.stage_timeout_s
        stream = run_stage.options(**options(request.config.learner)).remote(request)
        while True:
            ready, _ = ray.wait([stream], num_returns=1, timeout=limit)
            if not ready:
                raise PhaseTimeoutError(
                    f"{request.stage} gave no sign for {limit:.0f} s (learner.stage_timeout_s); it may be stuck"
                )
            try:
                ref = next(stream)
            except StopIteration:
                return
            yield wait_for(ref, role=request.stage, phase="training", timeout_s=CONTROL_TIMEOUT_S)

    @contextmanager
    def members(self, config: RunConfig, paths: ModelPaths, folder: Path) -> Iterator[Members]:
        """Start actors, all at once; kill them at the end."""
        handles: dict[tuple[str, str], Any] = {}
        for i in range(config.rollout.workers):
            name = f"worker-{i}"
            handles["rollout", name] = spawn(RolloutActor, config.rollout, config, paths, name)
        for i in range(config.reward_service.replicas):
            name = f"replica-{i}"
            handles["reward", name] = spawn(RewardActor, config.reward_service, config, paths)
        if paths.judge is None:
            handles["learner", "learner"] = spawn(LearnerActor, config.learner, config, paths, str(folder))
        try:
            described = _await_ready(handles, config)
            learner, watch = handles.get(("learner", "learner")), Stopwatch()
            yield Members(
                transport=RayTransport(handles),
                workers=[name for role, name in handles if role == "rollout"],
                replicas=[name for role, name in handles if role == "reward"],
                learner=RayLearner(learner, config, watch) if learner is not None else None,
                weights_of=lambda path, identity: _weights_of(handles["rollout", "worker-0"], path, identity),
                watch=watch,
                described=described,
            )
        finally:
            for handle in handles.values():
                ray.kill(handle)

    def close(self) -> None:
        """Disconnect; a local cluster ends with it."""
        ray.shutdown()


def _weights_of(worker: Any, path: str, identity: Identity) -> WeightsHandle:
    """A model folder's weights, read by a worker; this process owns the buffer and does not hold it."""
    buffer, handle = worker.weights_of.remote(path, identity)
    ready: WeightsHandle = wait_for(handle, role="worker-0", phase="weights", timeout_s=CONTROL_TIMEOUT_S)
    return dataclasses.replace(ready, ref=buffer)


def _await_ready(handles: dict[tuple[str, str], Any], config: RunConfig) -> dict[str, dict[str, object]]:
    """What each actor says once its models are loaded."""
    limits: dict[str, Placement] = {
        "rollout": config.rollout,
        "reward": config.reward_service,
        "learner": config.learner,
    }
    asked = {key: handle.ready.remote() for key, handle in handles.items()}
    return {
        name: wait_for(ref, role=f"{role} member {name}", phase="start", timeout_s=limits[role].start_timeout_s)
        for (role, name), ref in asked.items()
    }


def local_cpus(config: RunConfig) -> int:
    """Logical CPUs of a local cluster: the machine's, or as many as the roles ask for, if that is more."""
    needed = (
        config.rollout.workers * config.rollout.num_cpus
        + config.reward_service.replicas * config.reward_service.num_cpus
        + config.learner.num_cpus
    )
    return max(os.cpu_count() or 1, int(-(-needed // 1)))
