"""The rollout worker as a Ray actor: builds its parts in its own process and forwards calls. No logic here."""

from typing import Any

import ray
import torch

from actors.build import build_worker
from common.config import RunConfig
from common.records import GenerateRequest, Identity, ModelPaths, RolloutChunk, Stats, WeightsHandle
from common.weights import Buffer, detached, weights_of

FETCH_TIMEOUT_S = 120.0
"""Longest time in which published weights must arrive."""


def fetch(handle: WeightsHandle) -> Buffer:
    """The flat buffer from the object store: a read-only view, valid while it is held."""
    buffer: Buffer = ray.get(handle.ref, timeout=FETCH_TIMEOUT_S)
    return buffer


@ray.remote
class RolloutActor:
    """Shell around RolloutWorker."""

    def __init__(self, config: RunConfig, paths: ModelPaths, name: str) -> None:
        self._parts = (config, paths, name)

    def ready(self) -> dict[str, Any]:
        """Load the model (here, for errors of a constructor lose their type); says what the process uses."""
        config, paths, name = self._parts
        torch.set_num_threads(config.rollout.threads)
        self._worker = build_worker(config, paths, fetch=fetch, name=name)
        return {"threads": torch.get_num_threads(), "node": ray.get_runtime_context().get_node_id()}

    @ray.method(num_returns=2)
    def weights_of(self, path: str, identity: Identity) -> tuple[Buffer, WeightsHandle]:
        """Weights of a model folder, for evaluation; this worker goes on with its own."""
        return detached(weights_of(path, identity))

    @ray.method(num_returns=2)
    def generate(self, request: GenerateRequest) -> tuple[RolloutChunk, Stats]:
        """Payload and stats, as two objects."""
        return self._worker.generate(request)
