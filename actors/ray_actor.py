"""The rollout worker as a Ray actor: builds its parts in its own process and forwards calls. No logic here.

What is slow to import is imported in the constructor: the driver, which only names the class, does without.
"""

from typing import TYPE_CHECKING, Any

import ray
import ray.util

from common.collector import loading_packages
from common.config import RunConfig
from common.import_turns import import_turn
from common.records import GenerateRequest, Identity, ModelPaths, RolloutChunk, Stats, WeightsHandle
from common.run_place import local_copy, local_models
from common.vitals import describe, heartbeat, stacks

if TYPE_CHECKING:
    from common.flat_parameters import Buffer

FETCH_TIMEOUT_S = 120.0
"""Longest time in which published weights must arrive."""


def fetch(handle: WeightsHandle) -> "Buffer":
    """The flat buffer from the object store: a read-only view, valid while it is held."""
    buffer: Buffer = ray.get(handle.ref, timeout=FETCH_TIMEOUT_S)
    return buffer


@ray.remote(concurrency_groups={"heartbeat": 1, "prefetch": 1})
class RolloutActor:
    """Shell around RolloutWorker; signs of life are answered, and coming weights fetched, beside the work."""

    def __init__(self, config: RunConfig, paths: ModelPaths, name: str) -> None:
        self._parts = (config, paths, name)
        with import_turn(), loading_packages():
            import actors.build  # noqa: F401

    def start_from(self, paths: ModelPaths) -> None:
        """Name the models, where they were not known yet when the process was asked for; before `ready`."""
        self._parts = (self._parts[0], paths, self._parts[2])

    def ready(self) -> dict[str, Any]:
        """Load the model (here, for errors of a constructor lose their type); says what the process uses."""
        import torch

        from actors.build import build_worker

        config, paths, name = self._parts
        torch.set_num_threads(config.rollout.num_threads)
        self._worker = build_worker(config, local_models(paths), fetch=fetch, name=name)
        node, ip = ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()
        return describe(threads=torch.get_num_threads(), node=node, node_ip=ip) | self._worker.describe()

    def adopt(self, handle: WeightsHandle) -> dict[str, Any]:
        """Hold these weights before the first prompt."""
        return self._worker.adopt(handle)

    @ray.method(concurrency_group="prefetch")
    def prefetch(self, handle: WeightsHandle) -> dict[str, float]:
        """Have these weights here before a request names them."""
        return self._worker.prefetch(handle)

    @ray.method(num_returns=2)
    def generate(self, request: GenerateRequest) -> tuple[RolloutChunk, Stats]:
        """Payload and stats, as two objects."""
        return self._worker.generate(request)

    @ray.method(concurrency_group="heartbeat")
    def heartbeat(self) -> dict[str, Any]:
        """A sign of life."""
        return heartbeat()

    @ray.method(concurrency_group="heartbeat")
    def stacks(self) -> str:
        """Where the threads of this process stand."""
        return stacks()


@ray.remote(num_returns=2, num_cpus=0, max_retries=0)
def read_weights(path: str, identity: Identity) -> "tuple[Buffer, WeightsHandle]":
    """Weights of a model folder, for evaluation: the driver owns the buffer and does not hold it."""
    from common.weights import detached, weights_of

    return detached(weights_of(local_copy(path), identity))
