"""`bench scale`: whether the control plane keeps hundreds of workers busy, and what that costs the driver.

A real driver, with real records, ledger, metrics and Ray calls, over simulated workers (simulated.py) whose calls take
log-normal times, at staleness 1. An update has as many chunks as there are workers: with fewer, staleness 1 would not
admit enough work for all.

*Efficiency* is ideal over actual time. Within a window, the ideal time is the sum of the simulated latencies over the
number of workers: each works always, and asking, answering, judging, training and publishing take no time. The actual
time is the wall time of the window. A latency that lies partly in the window counts with that part, and only as long
as it was planned, so that a late wake-up of the simulation counts against us.

*Schedule* is the same share where the control plane costs nothing (free_control.py): the difference between the two is
what the control plane costs; what the schedule lacks to 1 is lost to waiting for updates.

*Driver CPU* is the time of all threads of this process, Ray's own among them, scrapes included. What the hosts of the
members and Ray's other processes use is none of the driver's; on a small machine they take their share of its cores.

A last run has calls so short that the driver is never done: how much it hands out at most.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.config import RunConfig
from common.config_file import load_config
from deploy.bench.figures import Figure
from deploy.bench.free_control import FreeControl
from deploy.bench.latency import Latency, busy_share
from deploy.bench.options import Options
from deploy.bench.roofline import Roofline
from deploy.bench.scaled_run import ScaledRun, Timing, scaled_run
from deploy.cluster import RayRuntime

CONFIG = Path(__file__).parents[1] / "configs" / "tiny.toml"
SAMPLES_PER_CALL = 16
REPLICAS_PER_WORKER = 1 / 16
MUST, MUST_AT = 0.90, 256
"""Least efficiency, and the number of workers for which it is promised."""
FULL_WORKERS, FULL_LATENCY, FULL_TIMING = 256, Latency(median_s=0.1, judge_s=0.002), Timing(4.0, 8.0, 0.05)
"""Of the run in which the driver is never done."""


def measure(options: Options, roof: Roofline) -> list[Figure]:
    """About half a minute for each number of workers."""
    figures = []
    runtime = RayRuntime(config_of(max(options.workers)))
    try:
        for workers in options.workers:
            config, latency, timing = config_of(workers), Latency(), Timing()
            run = run_once(config, runtime, latency, timing)
            figures += figures_of(run, schedule_share(config, latency, timing, run))
        full = run_once(config_of(FULL_WORKERS), runtime, FULL_LATENCY, FULL_TIMING)
    finally:
        runtime.close()
    note = f"{FULL_WORKERS} workers with calls of {FULL_LATENCY.median_s:g} s"
    return [*figures, Figure("scale.full.samples_per_s", full.samples / full.wall_s, "samples/s", note=note)]


def config_of(workers: int, *changes: str) -> RunConfig:
    """Of a run with so many workers; changes as `--set` takes them."""
    chunks = {"workers": workers, "chunk_sequences": SAMPLES_PER_CALL, "num_cpus": 1e-4}
    return load_config(
        CONFIG,
        [
            *(f"rollout.{name}={value}" for name, value in chunks.items()),
            f"reward_service.replicas={max(2, round(workers * REPLICAS_PER_WORKER))}",
            "reward_service.num_cpus=1e-4",
            "learner.num_cpus=0.1",
            f"ppo.trajectories_per_update={workers * SAMPLES_PER_CALL}",
            "ppo.max_staleness=1",
            "ppo.updates=1000000",
            "ppo.prompt_tokens={ min = 16, max = 64 }",
            "ppo.response_tokens={ min = 512, max = 1536 }",
            "model.max_tokens=2048",
            *changes,
        ],
    )


def run_once(config: RunConfig, runtime: RayRuntime, latency: Latency, timing: Timing) -> ScaledRun:
    """In a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        return scaled_run(config, runtime, latency, timing, Path(folder))


def schedule_share(config: RunConfig, latency: Latency, timing: Timing, run: ScaledRun) -> float:
    """What `efficiency` would be if the control plane cost nothing, in a window of the same length and place."""
    begin_s = timing.warm_up_s
    end_s = begin_s + run.wall_s
    worked = FreeControl(config, latency, update_s=timing.update_s).run(end_s)
    return busy_share(worked, config.rollout.workers, begin_s, end_s)


def figures_of(run: ScaledRun, schedule: float) -> list[Figure]:
    """Of one number of workers."""
    cpu_s, name = run.ended.cpu_s - run.begun.cpu_s, f"scale.{run.workers}"
    samples = max(1, run.samples)
    waits_ms = 1e3 * np.quantile(run.waits_s or [0.0], (0.5, 0.95))
    return [
        Figure(
            f"{name}.efficiency", run.efficiency, "share", share=run.efficiency / schedule, limit="the schedule",
            must=MUST if run.workers == MUST_AT else None, note=f"{run.updates} updates in {run.wall_s:.0f} s",
        ),
        Figure(f"{name}.schedule", schedule, "share", note="the same with a control plane that costs nothing"),
        Figure(f"{name}.samples_per_s", run.samples / run.wall_s, "samples/s"),
        Figure(f"{name}.driver_cpu_per_sample", 1e3 * cpu_s / samples, "ms", lower_is_better=True, note=_busiest(run)),
        Figure(f"{name}.driver_cores", cpu_s / run.wall_s, "cores", lower_is_better=True),
        Figure(f"{name}.dispatch_p50", waits_ms[0], "ms", lower_is_better=True, note="reply until next request"),
        Figure(f"{name}.dispatch_p95", waits_ms[1], "ms", lower_is_better=True),
        Figure(f"{name}.start", run.started_s, "s", lower_is_better=True, note="until all take work"),
        Figure(
            f"{name}.driver_memory_per_worker", (run.begun.rss_bytes - run.before.rss_bytes) / run.workers / 1e3,
            "kB", lower_is_better=True, note="two updates' samples on their way included",
        ),
        Figure(
            f"{name}.driver_memory_per_sample", (run.ended.rss_bytes - run.begun.rss_bytes) / samples, "bytes",
            lower_is_better=True, note="growth within the window; over a longer one it levels off",
        ),
        Figure(
            f"{name}.scrape", 1e3 * run.scrape_s, "ms", lower_is_better=True, note=f"{run.scrape_bytes / 1e3:.0f} kB"
        ),
    ]  # fmt: skip


def _busiest(run: ScaledRun, most: int = 4) -> str:
    spent = {name: spent_s - run.begun.by_thread.get(name, 0.0) for name, spent_s in run.ended.by_thread.items()}
    first: Sequence[str] = sorted(spent, key=lambda name: -spent[name])[:most]
    return ", ".join(f"{name} {1e3 * spent[name] / max(1, run.samples):.2f}" for name in first)
