"""Over 200 updates nothing grows: no process, no reference, no table; at most two weight versions are alive."""

import gc
import statistics
import time

import psutil
import pytest

from common.records import WeightsHandle

pytestmark = [pytest.mark.ray, pytest.mark.slow]

UPDATES, WARM = 200, 80
ROOM_BYTES = 24 << 20
"""What a process may differ by between two halves: allocators keep and give back pages in steps of this order, while
a leak of one batch, or of one copy of the weights, in each update would be seen as a steady rise."""


def look(run, status):
    """Everything that must not grow, as it is now."""
    import ray._private.worker

    supervisor = run.controls._attached._supervisor
    conductor = supervisor.conductor
    pids = {m.slot: m.pid for pool in status.pools.values() for m in pool.members}
    pids |= {"learner": status.learner.pid, "driver": psutil.Process().pid}
    handles = [o for o in gc.get_objects() if isinstance(o, WeightsHandle) and o.ref is not None]
    return {
        "step": status.step,
        "rss": {name: psutil.Process(pid).memory_info().rss for name, pid in pids.items()},
        "refs": len(ray._private.worker.global_worker.core_worker.get_all_reference_counts()),
        "versions": len({handle.identity for handle in handles}),
        "tables": (
            len(conductor._tasks)
            + sum(len(p.tasks) + len(p.roster.calls) + len(p._forgotten) for p in (conductor.rollout, conductor.reward))
        ),
    }


def test_nothing_grows_over_200_updates(break_a_run):
    seen = []

    def watch(run):
        run.await_step(WARM)
        while (status := run.status()).pools and status.step < UPDATES - 2:
            seen.append(look(run, status))
            time.sleep(0.25)

    outcome = break_a_run(f"ppo.updates={UPDATES}", "ppo.checkpoint_every=20", sabotage=watch)
    outcome.assert_whole(UPDATES)
    assert len(seen) >= 20, "it was watched"
    early = [s for s in seen if s["step"] < (WARM + UPDATES) / 2]
    late = [s for s in seen if s["step"] >= (WARM + UPDATES) / 2]
    for name in seen[0]["rss"]:
        before, after = (statistics.median(s["rss"][name] for s in half) for half in (early, late))
        assert after - before < ROOM_BYTES, f"{name} grew from {before / 1e6:.0f} to {after / 1e6:.0f} MB"
    assert max(s["refs"] for s in late) <= 1.5 * max(s["refs"] for s in early) + 8
    assert max(s["tables"] for s in seen) < 64, "as many as calls of one batch, and heartbeats"
    assert max(s["versions"] for s in seen) <= 2
