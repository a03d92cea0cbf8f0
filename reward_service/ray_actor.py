"""A reward replica as a Ray actor: builds its parts in its own process and forwards calls. No logic here.

What is slow to import is imported in the constructor: the driver, which only names the class, does without.
"""

from collections.abc import Mapping
from typing import Any

import ray
import ray.util

from common.collector import loading_packages
from common.config import RunConfig
from common.import_turns import import_turn
from common.records import JudgementChunk, ModelPaths, ReferenceChunk, RolloutChunk, Stats
from common.run_place import local_models
from common.vitals import describe, heartbeat, stacks


@ray.remote(concurrency_groups={"heartbeat": 1})
class RewardActor:
    """Shell around RewardService; signs of life are answered beside the work."""

    def __init__(self, config: RunConfig, paths: ModelPaths, secrets: Mapping[str, str]) -> None:
        self._parts = (config, paths, secrets)
        with import_turn(), loading_packages():
            import reward_service.build  # noqa: F401

    def start_from(self, paths: ModelPaths) -> None:
        """Name the models, where they were not known yet when the process was asked for; before `ready`."""
        self._parts = (self._parts[0], paths, self._parts[2])

    def ready(self) -> dict[str, Any]:
        """Load the models (here, for errors of a constructor lose their type); says what the process uses."""
        import torch

        from reward_service.build import build_service

        config, paths, secrets = self._parts
        torch.set_num_threads(config.reward_service.num_threads)
        self._service = build_service(config, local_models(paths), secrets)
        node, ip = ray.get_runtime_context().get_node_id(), ray.util.get_node_ip_address()
        return describe(threads=torch.get_num_threads(), node=node, node_ip=ip)

    def probe(self) -> dict[str, float]:
        """Classifiers' numbers for a fixed text, by part; raises MemberFailedError if a scorer cannot score it."""
        return dict(self._service.probe())

    @ray.method(num_returns=2)
    def score(self, chunk: RolloutChunk) -> tuple[JudgementChunk, Stats]:
        """Payload and stats, as two objects; Ray brings the chunk from the worker that made it."""
        return self._service.score(chunk)

    @ray.method(num_returns=2)
    def evaluate(self, chunk: RolloutChunk) -> tuple[JudgementChunk, Stats]:
        """Payload and stats, as two objects."""
        return self._service.evaluate(chunk)

    @ray.method(num_returns=2)
    def reference(self, chunk: RolloutChunk) -> tuple[ReferenceChunk, Stats]:
        """Payload and stats, as two objects."""
        return self._service.reference(chunk)

    @ray.method(concurrency_group="heartbeat")
    def heartbeat(self) -> dict[str, Any]:
        """A sign of life."""
        return heartbeat()

    @ray.method(concurrency_group="heartbeat")
    def stacks(self) -> str:
        """Where the threads of this process stand."""
        return stacks()
