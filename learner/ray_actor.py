"""The learner and the supervised stages as Ray actor and tasks: they build their parts and forward calls.

What is slow to import is imported where a process begins: the driver, which only names actor and task, does without.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import ray
import ray.util
from ray.exceptions import GetTimeoutError, ObjectLostError

from common.collector import loading_packages
from common.config import RunConfig
from common.import_turns import import_turn
from common.records import ChunkHandle, ModelPaths, Progress, StageResult, UpdateReport, WeightsHandle
from common.run_place import local_copy, local_models, workplace
from common.run_settings import RunSettings
from common.vitals import describe, heartbeat, stacks

if TYPE_CHECKING:
    from common.checkpoint import ShardFiles
    from common.flat_parameters import Buffer
    from learner.service import Payload
    from learner.stages import StageRequest

FETCH_TIMEOUT_S = 120.0
"""Longest time in which an update's payloads must arrive; one that does not is taken for lost."""


@ray.remote(concurrency_groups={"heartbeat": 1, "save": 1})
class LearnerActor:
    """Shell around LearnerService; signs of life and the writing of checkpoints go on beside updates."""

    def __init__(self, config: RunConfig, paths: ModelPaths, folder: str) -> None:
        self._parts = (config, paths, folder)
        self._payloads: list[Payload] = []
        with import_turn(), loading_packages():
            import learner.service  # noqa: F401

    def start_from(self, paths: ModelPaths) -> None:
        """Name the models, where they were not known yet when the process was asked for; before `ready`."""
        self._parts = (self._parts[0], paths, self._parts[2])

    def ready(self) -> dict[str, Any]:
        """Load the model (here, for errors of a constructor lose their type); says what the process uses."""
        import torch

        from learner.service import build_learner

        config, paths, folder = self._parts
        torch.set_num_threads(config.learner.num_threads)
        self._service = build_learner(config, local_models(paths), workplace(folder))
        node, ip = ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()
        return {**describe(threads=torch.get_num_threads(), node=node, node_ip=ip), **heartbeat()}

    def load(self, url: str | None, lineage: int) -> int:
        """Go on from a checkpoint, or from the weights before PPO; returns the updates behind it."""
        self._service.load(url, lineage=lineage)
        return self._service.step

    @ray.method(num_returns=2)
    def weights(self) -> "tuple[Buffer, WeightsHandle]":
        """The policy as it is now: the driver owns the result, so it outlives this process.

        Ray copies the buffer out of the policy before it begins another call of this group.
        """
        from common.weights import detached

        return detached(self._service.lend_weights())

    def prepare(self, chunks: Sequence[ChunkHandle]) -> list[int]:
        """Fetch an update's payloads before anything is trained; returns the positions of those that are lost."""
        refs = [ref for chunk in chunks for ref in _refs(chunk)]
        arrived, _ = ray.wait(refs, num_returns=len(refs), timeout=FETCH_TIMEOUT_S)
        fetched = [_fetch(chunk, set(arrived)) for chunk in chunks]
        self._payloads = [payload for payload in fetched if payload is not None]
        return [position for position, payload in enumerate(fetched) if payload is None]

    def update(self, settings: RunSettings) -> UpdateReport:
        """Train on what was prepared, once."""
        payloads, self._payloads = self._payloads, []
        return self._service.update(payloads, settings)

    def snapshot(self) -> None:
        """Copy the state; between two updates."""
        self._service.snapshot()

    @ray.method(concurrency_group="save")
    def write_snapshot(self, url: str) -> "ShardFiles":
        """Write the copy, beside the next updates."""
        return self._service.write_snapshot(url)

    def export(self, folder: str) -> None:
        """Leave the policy in Hugging Face's format."""
        self._service.export(workplace(folder))

    @ray.method(concurrency_group="heartbeat")
    def heartbeat(self) -> dict[str, Any]:
        """A sign of life."""
        return heartbeat()

    @ray.method(concurrency_group="heartbeat")
    def stacks(self) -> str:
        """Where the threads of this process stand."""
        return stacks()


def _refs(chunk: ChunkHandle) -> list[Any]:
    return [ref for ref in (chunk.rollouts, chunk.judgements, chunk.reference) if ref is not None]


def _fetch(chunk: ChunkHandle, arrived: set[Any]) -> "Payload | None":
    """A chunk's payloads, or None if one of them has not arrived, or went with its node (then it counts as arrived)."""
    refs = _refs(chunk)
    if not arrived.issuperset(refs):
        return None
    try:
        rollouts, judgements, *reference = ray.get(refs, timeout=FETCH_TIMEOUT_S)
    except (ObjectLostError, GetTimeoutError):
        return None
    return rollouts, judgements, reference[0] if reference else None, chunk.draw_indices


@ray.remote(num_returns="streaming", max_retries=0)
def run_stage(request: "StageRequest") -> Iterator[Progress | StageResult]:
    """A supervised stage; its progress streams to the driver."""
    with loading_packages():
        import torch

        from learner.stages import run_stage as run
    torch.set_num_threads(request.config.learner.num_threads)
    source = None if request.source is None else local_copy(request.source)
    yield from run(dataclasses.replace(request, source=source, folder=str(workplace(request.folder))))
