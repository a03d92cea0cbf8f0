"""Processes of a local cluster that have loaded their packages by the time the driver knows what to do with them.

Loading is what takes the time of a start: seconds of pure computation for each process. Ray gives an actor a process
that is idle if its environment is the same, so a task with a role's options, which only imports, leaves one for it.
"""

import gc
from collections.abc import Sequence
from typing import Any

import ray

from common.config import RunConfig
from common.ports import Role
from deploy.on_ray.calls import options

WARM_TIMEOUT_S = 60.0
"""Longest wait for processes that only load packages; who has none then starts one of its own."""


@ray.remote(max_retries=0)
def _load(role: Role | None) -> None:
    """Import what a role needs; None: the learner.

    Nothing of what is imported is ever garbage, so no time is spent on looking for it, now or later.
    """
    gc.disable()
    if role == "rollout":
        import actors.ray_actor  # noqa: F401
    elif role == "reward":
        import reward_service.ray_actor  # noqa: F401
    else:
        import learner.ray_actor  # noqa: F401
    gc.freeze()
    gc.enable()


def warm_up(config: RunConfig, *, with_pools: bool) -> list[Any]:
    """Ask for processes that load their packages; returns what `await_warm` waits for.

    Args:
        config: the run.
        with_pools: workers and replicas too; else only the learner, which also runs the stages before PPO.
    """
    learner = [_load.options(**options(config.learner)).remote(None)]
    if not with_pools:
        return learner
    rollout, reward = _load.options(**options(config.rollout)), _load.options(**options(config.reward_service))
    return [
        *learner,
        *(rollout.remote("rollout") for _ in range(config.rollout.workers)),
        *(reward.remote("reward") for _ in range(config.reward_service.replicas)),
    ]


def await_warm(loads: Sequence[Any]) -> None:
    """Wait until they are idle: who asks before gets a process that has to load everything itself."""
    if loads:
        ray.wait(list(loads), num_returns=len(loads), timeout=WARM_TIMEOUT_S)
