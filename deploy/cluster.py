"""Everything on Ray: a local cluster of our own, or one that is already there.

Actors are owned one by one, never restarted by Ray (their state would be gone), and every wait has a deadline.
"""

import dataclasses
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import ray

from actors.ray_actor import RolloutActor, read_weights
from common.config import RunConfig
from common.errors import PhaseTimeoutError
from common.records import Identity, ModelPaths, Progress, StageResult, WeightsHandle
from common.run_place import local_copy, shared, shared_models
from deploy.on_ray.calls import CONTROL_TIMEOUT_S, options, spawn, wait_for
from deploy.on_ray.early_actors import EarlyActors
from deploy.on_ray.learner import RayLearner
from deploy.on_ray.start import start_ray
from deploy.on_ray.transport import RayTransport
from deploy.on_ray.waiting import describe_lack
from deploy.preflight.placements import demand
from deploy.preflight.ray_facts import ray_facts
from deploy.preflight.runtime_facts import RuntimeFacts
from deploy.runtime import Members
from deploy.scorer_secrets import scorer_secrets
from deploy.stop_signal import StopSignal
from deploy.stopwatch import Stopwatch
from learner.ray_actor import LearnerActor, run_stage
from learner.stages import StageRequest
from reward_service.ray_actor import RewardActor

SLICE_S = 0.5
"""Time between two looks at the wish to stop, while a stage runs."""


class RayRuntime:
    """A Ray cluster.

    Args:
        config: the run; a local cluster has the machine's CPUs, or as many logical ones as the roles may ask for.
        address: of a running cluster; None starts one on this machine, for this run alone.
        insecure: accept a running cluster beyond loopback that asks for no token.
        early: actors that have been asked for, where Ray has been started already; see `deploy/early_start.py`. Once
            they are closed, as by a runtime before this one, they are no more than None.
    """

    name = "ray"
    are_processes = True

    def __init__(
        self,
        config: RunConfig,
        *,
        address: str | None = None,
        insecure: bool = False,
        early: EarlyActors | None = None,
    ) -> None:
        if early is None or not early.is_open:
            start_ray(config, address=address, insecure=insecure)
            early = EarlyActors()
        self._early = early

    def facts(self) -> RuntimeFacts:
        """For the preflight."""
        return self._early.facts or ray_facts()

    def run_stage(self, request: StageRequest, stop: StopSignal) -> Iterator[Progress | StageResult]:
        """Run a supervised stage in a process with the learner's resources."""
        self._early.end()  # they would hold the resources that the stage needs
        limit = request.config.learner.stage_timeout_s
        placement, silent_s, has_begun = request.config.learner, 0.0, False
        stream = run_stage.options(**options(placement)).remote(_travelling(request))
        while True:
            ready, _ = ray.wait([stream], num_returns=1, timeout=SLICE_S)
            if stop.requested:
                ray.cancel(stream, force=False)
                stop.raise_if_requested()
            if not ready:
                silent_s += SLICE_S
                if silent_s < limit:
                    continue
                ray.cancel(stream, force=False)
                why = "" if has_begun else f", or it waits for a node: {describe_lack(demand('learner', placement))}"
                raise PhaseTimeoutError(
                    f"{request.stage} gave no sign for {limit:.0f} s (learner.stage_timeout_s); it may be stuck{why}"
                )
            silent_s, has_begun = 0.0, True
            try:
                ref = next(stream)
            except StopIteration:
                return
            item = wait_for(ref, role=request.stage, phase="training", timeout_s=CONTROL_TIMEOUT_S)
            if isinstance(item, StageResult):
                local_copy(shared(request.folder))
            yield item

    @contextmanager
    def members(
        self, config: RunConfig, paths: ModelPaths, folder: Path, stop: StopSignal, *, with_learner: bool = True
    ) -> Iterator[Members]:
        """Start the learner; workers and replicas start when the supervisor asks for them. All end with the block."""
        logs, watch, secrets = folder / "logs", Stopwatch(), scorer_secrets(config, os.environ)
        paths = shared_models(paths)
        transport = RayTransport(
            spawn={
                "rollout": lambda slot, avoid: self._early.take(
                    slot,
                    avoid,
                    paths,
                    lambda: spawn(RolloutActor, config.rollout, config, paths, slot, avoid=avoid),
                ),
                "reward": lambda slot, avoid: self._early.take(
                    slot,
                    avoid,
                    paths,
                    lambda: spawn(RewardActor, config.reward_service, config, paths, secrets, avoid=avoid),
                ),
            },
            demands={
                "rollout": demand("rollout", config.rollout),
                "reward": demand("reward_service", config.reward_service),
            },
            logs=logs,
        )
        weights_of = functools.partial(_weights_of, config.rollout.label_selector)
        learner = None
        try:
            if with_learner:
                learner = RayLearner(
                    lambda avoid: self._early.take(
                        "learner",
                        avoid,
                        paths,
                        lambda: spawn(LearnerActor, config.learner, config, paths, shared(folder), avoid=avoid),
                    ),
                    config,
                    watch=watch,
                    stop=stop,
                    logs=logs,
                )
            yield Members(transport, learner, weights_of, watch)
        finally:
            transport.close()
            self._early.end()
            if learner is not None:
                learner.close()

    def close(self) -> None:
        """Disconnect; a local cluster ends with it."""
        self._early.close()


def _weights_of(selector: dict[str, str], path: str, identity: Identity) -> WeightsHandle:
    """A model folder's weights, read where a worker may be; this process owns the buffer and does not hold it."""
    buffer, handle = read_weights.options(label_selector=selector or None).remote(shared(path), identity)
    ready: WeightsHandle = wait_for(handle, role="driver", phase="weights", timeout_s=CONTROL_TIMEOUT_S)
    return dataclasses.replace(ready, ref=buffer)


def _travelling(request: StageRequest) -> StageRequest:
    """For a process that may be on another machine."""
    source = None if request.source is None else shared(request.source)
    return dataclasses.replace(request, source=source, folder=shared(request.folder))
