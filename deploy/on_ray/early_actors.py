"""Actors that are asked for before the driver knows which models they shall have, so that they load their packages
meanwhile: seconds of pure computation in each process, which is what a start consists of.
"""

import os
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from typing import Any

import ray

from actors.ray_actor import RolloutActor
from common.config import RunConfig
from common.records import ModelPaths
from deploy.on_ray.calls import spawn
from deploy.preflight.ray_facts import ray_facts
from deploy.preflight.runtime_facts import RuntimeFacts
from learner.ray_actor import LearnerActor
from reward_service.ray_actor import RewardActor

NOT_YET = ModelPaths("", None, None)
"""Models of an actor that waits for `start_from`."""
EMPTY: Mapping[str, Any] = {}
FOR_A_SAMPLE = 2
"""Actors without which nothing is generated: the learner, whose weights are used, and a worker."""


class EarlyActors:
    """By slot, until somebody takes them; `learner` is one. They live as long as the cluster that was begun for them.

    Args:
        actors: handles.
        facts: of the cluster before they took their share of it, for the preflight; None: nobody took any.
        end_cluster: called by `close`; of a cluster that has ended already nothing is asked.
    """

    def __init__(
        self,
        actors: Mapping[str, Any] = EMPTY,
        facts: RuntimeFacts | None = None,
        *,
        end_cluster: Callable[[], None] = ray.shutdown,
    ) -> None:
        self._actors = dict(actors)
        self.facts = facts
        self._end_cluster = end_cluster
        self.is_open = True
        """Whether the cluster is there; a runtime that is built later starts one of its own."""

    def take(self, slot: str, avoid: str, paths: ModelPaths, fresh: Callable[[], Any]) -> Any:
        """The actor of a slot, which is told its models; a fresh one where there is none, or another node is wanted."""
        if avoid or slot not in self._actors:
            return fresh()
        actor = self._actors.pop(slot)
        actor.start_from.remote(paths)
        return actor

    def end(self) -> None:
        """Nobody takes the rest."""
        while self._actors:
            ray.kill(self._actors.popitem()[1])

    def close(self) -> None:
        """The cluster ends, and all actors with it; to be called on every way out, a second time does nothing."""
        if self.is_open:
            self.is_open = False
            self._actors.clear()
            self._end_cluster()


def spawn_early(config: RunConfig, secrets: Mapping[str, str], folder: str) -> EarlyActors:
    """What PPO starts with, as far as there are cores: importing is computation, so that more processes at a time would
    only make each later, and with them the first samples. The rest is asked for like any other member.

    Args:
        config: the run.
        secrets: of scorers.
        folder: of the run, as other processes see it.
    """
    facts = ray_facts()
    room = max(os.cpu_count() or 1, FOR_A_SAMPLE)
    learner = partial(spawn, LearnerActor, config.learner, config, NOT_YET, folder)
    ask: dict[str, Callable[[], Any]] = {"learner": learner}
    for number in range(config.rollout.workers):
        slot = f"worker-{number}"
        ask[slot] = partial(spawn, RolloutActor, config.rollout, config, NOT_YET, slot)
    for number in range(config.reward_service.replicas):
        ask[f"replica-{number}"] = partial(spawn, RewardActor, config.reward_service, config, NOT_YET, secrets)
    return EarlyActors({slot: begin() for slot, begin in islice(ask.items(), room)}, facts)
