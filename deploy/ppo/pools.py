"""From a configuration to running pools: limits, conductor and supervisor thread."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from actors.prompts import PromptStream
from common.metrics import RunMetrics
from common.pool_actions import Note
from common.supervision import Ledger, Limits
from deploy.place import Place
from deploy.ppo.chunk_flow import ChunkFlow
from deploy.ppo.conductor import Conductor
from deploy.ppo.supervisor import Supervisor
from deploy.runtime import Members

DEPTH_OF_OBJECTS = 1 << 30
"""Calls that an object holds where generation runs ahead: all of them, so that which weights a chunk is of follows from
when it was admitted, and not from the pace of threads."""


@contextmanager
def imports_left_alone() -> Iterator[None]:
    """Python's collector of cycles passes over what is there already, which stays anyway: a look at all of torch and
    Ray stops every thread for a third of a second, and large batches bring one about.
    """
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


@contextmanager
def supervised(
    place: Place,
    members: Members,
    *,
    prompts: PromptStream,
    metrics: RunMetrics,
    ledger: Ledger,
    note: Callable[[Note], None],
    keep: Callable[[Ledger], None] = lambda ledger: None,
) -> Iterator[Supervisor]:
    """Pools of the sizes that the configuration names, whose members start at once."""
    config = place.config
    assert config.ppo is not None, "pools are of a PPO stage"
    processes = place.runtime.are_processes
    rollout = Limits.of(config.rollout, min_members=config.rollout.min_workers, are_processes=processes)
    reward = Limits.of(
        config.reward_service,
        min_members=config.reward_service.min_replicas,
        budget_s=config.reward_service.budget_s,
        are_processes=processes,
    )
    if config.ppo.max_staleness > 0 and not processes:
        rollout, reward = (replace(limits, depth=DEPTH_OF_OBJECTS, binds_at_once=True) for limits in (rollout, reward))
    rollout = replace(rollout, prefetches=config.ppo.max_staleness > 0 and processes)
    conductor = Conductor(
        ChunkFlow(
            config,
            prompts=prompts,
            rollout=rollout,
            reward=reward,
            with_reference=config.ppo.reference == "service",
            ledger=ledger,
        )
    )
    learner = members.learner
    supervisor = Supervisor(
        conductor,
        members.transport,
        metrics=metrics,
        watch=members.watch,
        stop=place.stop,
        note=note,
        keep=keep,
        learner=dict if learner is None else lambda: learner.described,
        trace=place.trace,
    )
    if place.trace is not None:
        members.watch.tell(place.trace.phase)
    try:
        supervisor.resize(workers=config.rollout.workers, replicas=config.reward_service.replicas)
        with imports_left_alone():
            yield supervisor
    finally:
        supervisor.close()
