"""The start of a run, in which nothing waits for what it does not need.

    main thread    parse ─▶ import ray ─▶ ray.init ─▶ ask for actors ─▶ wait ─▶ preflight, models of the actors
    thread                       └─▶ import torch, transformers, the pipeline ─┘                    │
    actors                                                     └─▶ import torch, transformers, role ─┴─▶ ready

Called by `minichatgpt run` for a local cluster; on a cluster that is there the preflight has to say first what is
missing. Where all stages are done already nothing is started.
"""

import os
import signal
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from common.collector import loading_packages
from common.config import RunConfig
from common.errors import ConfigError
from common.run_place import shared
from deploy.on_ray.environment import protect_local_cluster
from deploy.on_ray.openness import refuse_open_local
from deploy.run_folder.lock import is_held
from deploy.scorer_secrets import scorer_secrets
from deploy.stage_names import check_again, stages_of

if TYPE_CHECKING:
    from deploy.on_ray.early_actors import EarlyActors

AFTER_LEARNING = ("ppo", "evaluate")
"""Stages that PPO does not wait for."""
NICENESS = 5
"""Of the thread that imports: on a machine that is else idle the driver is done seconds before it is needed."""


def import_pipeline() -> None:
    """Load what a run needs, in a thread that yields the cores to Ray and the actors."""
    if sys.platform == "linux":  # elsewhere it would be the priority of the whole process
        os.nice(NICENESS)
    with loading_packages():
        import deploy.cluster
        import deploy.run  # noqa: F401


def start_early(config: RunConfig, folder: Path, *, insecure: bool, again: frozenset[str]) -> "EarlyActors | None":
    """A local cluster whose processes load their packages while this process loads its own.

    Returns:
        Actors that PPO starts with, none where other stages come first, to be closed on every way out; None: Ray was
        not started, for nothing is to be done, or something is in the way, which the run then says with all else.
    """
    if not is_work_left(config, folder, again) or "RAY_ADDRESS" in os.environ or is_held(folder):
        return None
    try:
        check_again(config, again)
        secrets = scorer_secrets(config, os.environ)
        protect_local_cluster()
        refuse_open_local(os.environ, insecure=insecure)
    except ConfigError:
        return None
    from deploy.on_ray.early_actors import EarlyActors, spawn_early
    from deploy.on_ray.start import start_ray  # wholly, before another thread imports Ray too

    with ExitStack() as failing, ThreadPoolExecutor(1, thread_name_prefix="imports") as executor:
        imported = executor.submit(import_pipeline)
        at_sigterm = signal.getsignal(signal.SIGTERM)
        start_ray(config, address=None, insecure=insecure)  # here: Ray's processes end with the thread that began them
        early = EarlyActors()
        failing.callback(early.close)
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, at_sigterm)  # Ray's own would end with another exit code
        if is_ppo_next(config, folder, again):
            early = spawn_early(config, secrets, shared(folder.absolute()))
        imported.result()
        failing.pop_all()
    return early


def _record(folder: Path, stage: str) -> Path:
    return folder / "stages" / f"{stage}.json"


def is_work_left(config: RunConfig, folder: Path, again: frozenset[str]) -> bool:
    """Whether some stage has no record; one whose record is of other inputs starts its cluster later."""
    return bool(again) or not all(_record(folder, stage).is_file() for stage in stages_of(config))


def is_ppo_next(config: RunConfig, folder: Path, again: frozenset[str]) -> bool:
    """Whether PPO is to be run, and all that it starts from has a record."""
    before = [stage for stage in stages_of(config) if stage not in AFTER_LEARNING]
    is_done = all(_record(folder, stage).is_file() for stage in before) and again.isdisjoint(before)
    return config.ppo is not None and is_done and ("ppo" in again or not _record(folder, "ppo").is_file())
