"""What every caller of a Ray actor needs: options of a process, errors in our words, waits with a deadline."""

import os
from typing import Any

import ray
import ray._private.state
from ray.exceptions import GetTimeoutError, ObjectLostError, RayError, RayTaskError

from common.errors import MemberFailedError, MiniChatGPTError, PhaseTimeoutError
from common.label_selector import avoiding
from common.placement_config import Placement, PoolPlacement
from common.ports import Cause
from deploy.on_ray.environment import ONE_HEAP, THREADS
from deploy.on_ray.postmortem import DEATHS

CONTROL_TIMEOUT_S = 300.0
"""Longest time of a call that only moves weights or writes files."""


def options(placement: Placement) -> dict[str, Any]:
    """Ray options of a process with this placement."""
    spread = isinstance(placement, PoolPlacement) and placement.strategy == "spread"
    trains_on_cpu = not isinstance(placement, PoolPlacement) and placement.num_gpus == 0
    heap = {k: v for k, v in ONE_HEAP.items() if trains_on_cpu and k not in os.environ}
    return {
        "num_cpus": placement.num_cpus,
        "num_gpus": placement.num_gpus,
        "memory": placement.memory_bytes or None,
        "resources": dict(placement.resources) or None,
        "label_selector": dict(placement.label_selector) or None,
        "scheduling_strategy": "SPREAD" if spread else "DEFAULT",
        "runtime_env": {"env_vars": {"OMP_NUM_THREADS": str(placement.num_threads), **THREADS, **heap}},
    }


def spawn(actor_class: Any, placement: Placement, *arguments: Any, avoid: str = "") -> Any:
    """Ask Ray for an actor; returns its handle at once.

    Args:
        actor_class: a remote class.
        placement: of its process.
        arguments: of its constructor.
        avoid: id of a node that is taken only where no other that the role may use has room: Ray itself goes on placing
            actors on a node that died or is cut off until it has noticed, which takes it up to 65 s.
    """
    asked = options(placement)
    if avoid and (elsewhere := avoiding(placement.label_selector, avoid)) is not None:
        asked |= {
            "label_selector": elsewhere,
            "fallback_strategy": [{"label_selector": dict(placement.label_selector)}],
        }
    return actor_class.options(**asked).remote(*arguments)


def cause_of(error: BaseException) -> tuple[BaseException, Cause]:
    """The error that was raised in the other process, or Ray's own; and what it means."""
    if isinstance(error, DEATHS):
        return error, "died"
    inner = error.cause if isinstance(error, RayTaskError) and error.cause is not None else error
    return inner, "lost" if isinstance(inner, ObjectLostError) else "raised"


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
        cause, kind = cause_of(error)
        if isinstance(cause, MiniChatGPTError):
            raise cause from error
        did = "died" if kind == "died" else "failed"
        raise MemberFailedError(f"{role} {did} in {phase}: {type(cause).__name__}: {cause}") from error


def unplaced_actors() -> frozenset[str]:
    """Ids of this job's actors that have no node yet; without its dashboard Ray tells it by no public function.

    An actor has the same state, PENDING_CREATION, while it waits for a node and while it starts there: whether it has a
    process tells. An address it has already where it waits in the queue of one node.
    """
    job = ray.JobID.from_hex(ray.get_runtime_context().get_job_id())
    actors = ray._private.state.state.actor_table(None, job, "PENDING_CREATION")
    return frozenset(name for name, actor in actors.items() if not actor["Pid"])


def is_placed(actor: Any) -> bool:
    """Whether an actor has a node, or is dead; one that Ray's books do not hold yet has none."""
    found = ray._private.state.state.actor_table(actor_id(actor))
    return bool(found) and (found["State"] == "DEAD" or bool(found["Pid"]))


def actor_id(actor: Any) -> str:
    """Of an actor's handle."""
    name: str = actor._actor_id.hex()
    return name


def draining_nodes() -> frozenset[str]:
    """Ids of the nodes that are about to go; Ray tells it by no public function."""
    return frozenset(ray._private.state.state.get_draining_nodes())
