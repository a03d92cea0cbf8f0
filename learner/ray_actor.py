"""The learner and the supervised stages as Ray actor and tasks: they build their parts and forward calls."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import ray
import torch

from common.checkpoint import ShardFiles
from common.config import RunConfig
from common.records import ChunkHandle, ModelPaths, Progress, StageResult, UpdateReport, WeightsHandle
from common.weights import Buffer, detached
from learner.service import Payload, build_learner
from learner.stages import StageRequest
from learner.stages import run_stage as run

FETCH_TIMEOUT_S = 120.0
"""Longest time in which an update's payloads must arrive."""


@ray.remote(concurrency_groups={"save": 1})
class LearnerActor:
    """Shell around LearnerService."""

    def __init__(self, config: RunConfig, paths: ModelPaths, folder: str) -> None:
        self._parts = (config, paths, folder)
        self._payloads: list[Payload] = []

    def ready(self) -> dict[str, Any]:
        """Load the model (here, for errors of a constructor lose their type); says what the process uses."""
        config, paths, folder = self._parts
        torch.set_num_threads(config.learner.threads)
        self._service = build_learner(config, paths, Path(folder))
        return {"threads": torch.get_num_threads(), "node": ray.get_runtime_context().get_node_id()}

    @ray.method(num_returns=2)
    def weights(self) -> tuple[Buffer, WeightsHandle]:
        """The policy as it is now: the driver owns the result, so it outlives this process."""
        return detached(self._service.weights())

    def prepare(self, chunks: Sequence[ChunkHandle]) -> int:
        """Fetch an update's payloads; one that is lost fails here, before anything is trained."""
        refs = [ref for chunk in chunks for ref in (chunk.rollouts, chunk.judgements, chunk.reference)]
        fetched = iter(ray.get([ref for ref in refs if ref is not None], timeout=FETCH_TIMEOUT_S))
        parts: list[Any] = [None if ref is None else next(fetched) for ref in refs]
        self._payloads = [(parts[i], parts[i + 1], parts[i + 2]) for i in range(0, len(parts), 3)]
        return len(self._payloads)

    def update(self) -> UpdateReport:
        """Train on what was prepared, once."""
        payloads, self._payloads = self._payloads, []
        return self._service.update(payloads)

    def snapshot(self) -> None:
        """Copy what a checkpoint holds; see LearnerService."""
        self._service.snapshot()

    @ray.method(concurrency_group="save")
    def write_snapshot(self, url: str) -> ShardFiles:
        """Write it, in a thread of its own, while the next update runs."""
        return self._service.write_snapshot(url)

    def export(self, folder: str) -> None:
        """Leave the policy in Hugging Face's format."""
        self._service.export(Path(folder))


@ray.remote(num_returns="streaming", max_retries=0)
def run_stage(request: StageRequest) -> Iterator[Progress | StageResult]:
    """A supervised stage; its progress streams to the driver."""
    torch.set_num_threads(request.config.learner.threads)
    yield from run(request)
