"""One run of the real control plane over simulated members: loop, supervisor, conductor, pools, Ray, recorder, ledger,
metrics and their scrapes are those of any run; members only wait (simulated.py), and so does the learner.

    train (thread "loop") ─▶ Supervisor ─▶ DispatchTimes ─▶ RayTransport ─▶ hosts
    this thread: waits for the members, then warms up, takes the costs, waits, takes the costs again, stops the run
"""

import functools
import io
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import ray
from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

from common.config import RunConfig
from common.errors import PhaseTimeoutError, RunStopped
from common.metrics import RunMetrics
from common.ports import Call
from common.records import WeightsHandle
from common.supervision import Ledger
from deploy.bench.latency import Latency, Worked, busy_share
from deploy.bench.own_cost import Cost, own_cost
from deploy.bench.random_prompts import prompts_of
from deploy.bench.simulated import DispatchTimes, HostActor, SimulatedTransport
from deploy.bench.stand_ins import FixedSettings, NoCheckpoints, WaitingLearner
from deploy.cluster import RayRuntime
from deploy.control.run_controls import RunControls
from deploy.evaluation.evaluations import NoEvaluations
from deploy.place import Place
from deploy.ppo.pools import supervised
from deploy.ppo.recorder import RunRecorder
from deploy.ppo.recovery import Lineages
from deploy.ppo.supervisor import Supervisor
from deploy.preflight.placements import demand
from deploy.progress import progress
from deploy.runtime import Members
from deploy.stop_signal import StopSignal
from deploy.stopwatch import Stopwatch
from learner.loop import train

MEMBERS_PER_HOST = 512
SCRAPE_EVERY_S = 5.0
"""As deploy/prometheus/prometheus.yml has it."""
START_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class Timing:
    """Of one run, in seconds."""

    warm_up_s: float = 12.0
    """From when all members take work."""
    window_s: float = 25.0
    """Measured, after that."""
    update_s: float = 0.5
    """That the learner takes."""


@dataclass(frozen=True, slots=True)
class ScaledRun:
    """What was measured."""

    workers: int
    before: Cost
    """No member yet."""
    begun: Cost
    """The window begins."""
    ended: Cost
    worked: Sequence[Worked]
    samples: int
    """Generated in the window."""
    updates: int
    """Trained in the window."""
    waits_s: Sequence[float]
    """See DispatchTimes; those in the window."""
    started_s: float
    """Until all members took work."""
    scrape_bytes: int
    scrape_s: float
    """Median."""
    ledger: Ledger

    @property
    def wall_s(self) -> float:
        """Of the window."""
        return self.ended.at_s - self.begun.at_s

    @property
    def efficiency(self) -> float:
        """Ideal over actual time, see scale.py."""
        return busy_share(self.worked, self.workers, self.begun.at_s, self.ended.at_s)


def scaled_run(config: RunConfig, runtime: RayRuntime, latency: Latency, timing: Timing, folder: Path) -> ScaledRun:
    """Run for a while and measure.

    Args:
        config: of the run; says how many workers and replicas there are.
        runtime: a Ray cluster.
        latency: of the members.
        timing: of warm-up, window and learner.
        folder: of the run.
    """
    with _hosts(config, latency) as (hosts, judges):
        before = own_cost()
        transport = SimulatedTransport(
            {"rollout": hosts, "reward": [judges]},
            {"rollout": demand("rollout", config.rollout), "reward": demand("reward_service", config.reward_service)},
            folder / "logs",
        )
        try:
            measured = _run(config, runtime, DispatchTimes(transport), timing, folder)
        finally:
            transport.close()
        worked = [w for host in hosts for w in ray.get(host.worked.remote(), timeout=START_TIMEOUT_S)]
    return replace(measured, before=before, worked=worked)


@contextmanager
def _hosts(config: RunConfig, latency: Latency) -> Iterator[tuple[list[Any], Any]]:
    """Of workers, and of judges, once they answer."""
    hosts = [HostActor.remote(latency) for _ in range(-(-config.rollout.workers // MEMBERS_PER_HOST))]
    judges = HostActor.remote(latency)
    try:
        ray.get([host.worked.remote() for host in (*hosts, judges)], timeout=START_TIMEOUT_S)
        yield hosts, judges
    finally:
        for host in (*hosts, judges):
            ray.kill(host)


def _run(config: RunConfig, runtime: RayRuntime, watched: DispatchTimes, timing: Timing, folder: Path) -> ScaledRun:
    """All that the driver does; `before` and `worked` are for others to fill in."""
    watch, stop, metrics = Stopwatch(), StopSignal(), RunMetrics(CollectorRegistry())
    place = Place(config, runtime, folder, Console(file=io.StringIO()), stop, RunControls(config.name, stop), metrics)
    members = Members(watched, None, lambda path, identity: WeightsHandle(identity, None, 0, ()), watch)
    learner = WaitingLearner(timing.update_s, ray.put(np.zeros(16, np.float32)))
    with supervised(
        place, members, prompts=prompts_of(config), metrics=metrics, ledger=Ledger(), note=lambda note: None,
        keep=Lineages(folder / "ledger.json").keep,
    ) as supervisor, ThreadPoolExecutor(1, thread_name_prefix="loop") as thread:  # fmt: skip
        watched.queued_at_s = functools.partial(_queued_at_s, supervisor)
        began = time.monotonic()
        loop = thread.submit(_train, place, supervisor, learner, watch)
        try:
            _until_active(supervisor, config.rollout.workers, loop)
            started_s = time.monotonic() - began
            _scrape_for(metrics, timing.warm_up_s)
            begun, samples, waits, step = own_cost(), watched.answered, len(watched.waits_s), learner.step
            scrapes = _scrape_for(metrics, timing.window_s)
            measured = ScaledRun(
                workers=config.rollout.workers,
                before=begun,
                begun=begun,
                ended=own_cost(),
                worked=(),
                samples=(watched.answered - samples) * config.rollout.chunk_sequences,
                updates=learner.step - step,
                waits_s=watched.waits_s[waits:],
                started_s=started_s,
                scrape_bytes=scrapes[-1][0],
                scrape_s=float(np.median([seconds for _, seconds in scrapes])),
                ledger=supervisor.ledger(),
            )
        finally:
            stop.request("measured", 0)
        loop.result(timeout=START_TIMEOUT_S)
    return measured


def _train(place: Place, supervisor: Supervisor, learner: WaitingLearner, watch: Stopwatch) -> None:
    """The loop of every run, until somebody stops it."""
    assert place.config.ppo is not None, "it is a PPO run"
    steering = FixedSettings(place.config)
    with progress(place.console) as bar:
        recorder = RunRecorder(
            place.folder,
            tokenizer=PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"<unk>": 0}, "<unk>"))),
            ledger=supervisor.ledger,
            metrics=place.metrics,
            watch=watch,
            pulse=supervisor.lookout.pulse,
            settings=lambda: steering.settings,
            bar=(bar, bar.add_task("ppo", total=None, message="")),
            saw=lambda report: None,
            track=lambda row, samples: None,
            cycled=lambda cycle: None,
            note=lambda event, text: None,
        )
        try:
            train(
                learner=learner,
                rollouts=supervisor,
                recorder=recorder,
                steering=steering,
                evaluations=NoEvaluations(),
                checkpoints=NoCheckpoints(),
                config=place.config.ppo,
            )
        except RunStopped:
            supervisor.abandon()


def _queued_at_s(supervisor: Supervisor, call: Call) -> float:
    """In the supervisor's thread, whose clock is the monotonic one."""
    pool = supervisor.conductor.rollout
    _, held = pool.roster.calls[call.call_id]
    assert held.task_id is not None, "it is work"
    return pool.tasks[held.task_id].queued_at


def _until_active(supervisor: Supervisor, workers: int, loop: "Future[None]") -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while (active := supervisor.describe()["rollout"]["active"]) < workers:
        if loop.done():
            loop.result()
        if time.monotonic() > end:
            raise PhaseTimeoutError(f"{active} of {workers} simulated workers take work after {START_TIMEOUT_S:g} s")
        time.sleep(0.25)


def _scrape_for(metrics: RunMetrics, seconds: float) -> list[tuple[int, float]]:
    """Wait, and do meanwhile what Prometheus does; bytes and seconds of each scrape."""
    end, scrapes = time.monotonic() + seconds, []
    while (now := time.monotonic()) < end:
        start = time.perf_counter()
        text = generate_latest(metrics.registry)
        scrapes.append((len(text), time.perf_counter() - start))
        time.sleep(min(SCRAPE_EVERY_S, end - now))
    return scrapes
