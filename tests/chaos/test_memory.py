"""Memory stays flat over 125 updates: of every process, of the object store, and of what the driver remembers."""

from dataclasses import dataclass
from statistics import median

import psutil
import pytest
from prometheus_client import CollectorRegistry

from common.control_config import ControlConfig
from deploy.control.client import RunClient
from deploy.control.server import serve_control
from deploy.control.tokens import read_token
from deploy.run import run_pipeline

pytestmark = [pytest.mark.ray, pytest.mark.slow]

UPDATES = 125
SETTINGS = (f"ppo.updates={UPDATES}", "ppo.checkpoint_every=20")
WIDE = ("model.hidden_size=64",)
"""So that weights are large enough for the object store, and a leak of them for an eye."""


@dataclass
class Look:
    """What is held at a moment."""

    step: int
    rss_bytes: dict[str, int]
    store_bytes: float
    refs: int
    remembered: dict[str, int]


def store_bytes() -> float:
    """Of primary copies, which is what references keep alive; Ray has no public call for it."""
    import ray
    import ray._private.state

    name = "object_store_memory"
    free = ray._private.state.available_resources_per_node().values()
    return sum(n["Resources"][name] for n in ray.nodes() if n["Alive"]) - sum(f.get(name, 0) for f in free)


def references() -> int:
    """That this process holds or lends."""
    import ray

    return len(ray._private.worker.global_worker.core_worker.get_all_reference_counts())


def remembered(conductor) -> dict[str, int]:
    """Entries of all tables of the machines that the supervisor thread owns."""
    pools = (conductor.rollout, conductor.reward)
    tables = {"flow._tasks": conductor._flow._tasks}
    for pool in pools:
        tables |= {f"{pool.role}.{n}": getattr(pool, n) for n in ("tasks", "_queue", "_forgotten")}
        tables |= {f"{pool.role}.{n}": getattr(pool.roster, n) for n in ("calls", "slots")}
        tables |= {f"{m.key}.work": m.work for m in pool.roster.members()}
        tables |= {f"{m.key}.asked": m.asked for m in pool.roster.members()}
    return {name: len(table) for name, table in tables.items()}


def look(status, conductor) -> Look:
    pids = {"driver": status.pid, "learner": status.learner.pid}
    pids |= {member.slot: member.pid for pool in status.pools.values() for member in pool.members}
    rss = {name: psutil.Process(pid).memory_info().rss for name, pid in pids.items() if pid}
    return Look(status.step, rss, store_bytes(), references(), remembered(conductor))


def assert_flat(name, looks, of, tolerance):
    """Medians of two windows after warm-up, 75 updates apart: single looks jitter."""
    before, after = (median(of(x) for x in looks if low <= x.step < low + 25) for low in (25, 100))
    assert after - before < tolerance, f"{name} grew from {before:.0f} to {after:.0f} within 75 updates"


def test_nothing_grows_over_125_updates(tiny, tmp_path, break_a_run):
    wide = tiny(*SETTINGS, *WIDE)
    run_pipeline(wide, tmp_path / "wide", local=True, address=None, again=frozenset())
    looks = []

    def watch(run):
        run.await_step(1)
        with (
            serve_control(ControlConfig(), run.controls, run.folder, registry=CollectorRegistry()) as url,
            RunClient(run.folder, 0, url, read_token(run.folder)) as client,
        ):
            conductor = run.controls._attached._supervisor.conductor
            while (status := client.status()).pools and status.step < UPDATES:
                looks.append(look(status, conductor))

    outcome = break_a_run(*SETTINGS, *WIDE, sabotage=watch, name="wide", again=True)
    outcome.assert_whole(UPDATES)
    weights = (outcome.folder / "models" / "ppo" / "model.safetensors").stat().st_size
    assert weights > 300_000, "Ray keeps smaller objects elsewhere"
    # One version of the weights that is kept per update would add 75 of them. Workers may have half of that: their
    # allocator's arenas take some 300 updates until they have their size, and stay there.
    for name, versions in {"driver": 20, "learner": 20, "replica-0": 20, "worker-0": 37, "worker-1": 37}.items():
        assert_flat(f"memory of {name}", looks, lambda x, name=name: x.rss_bytes[name], versions * weights)
    most = max(x.store_bytes for x in looks)
    assert weights / 2 < most < 2.5 * weights, "at most two versions are alive"
    # One of anything that is forgotten per update would add 75.
    assert_flat("references of the driver", looks, lambda x: x.refs, 20)
    for name in looks[0].remembered:
        assert max(x.remembered[name] for x in looks) <= 16, f"{name}: four chunks, and a few calls for each"
