"""Benchmark `publish`: from the learner's memory into the memory of two workers, through Ray's object store.

Everything is counted in copies: the time in which this machine copies as many bytes from memory to memory, measured in
the same rounds. The other way is a dictionary of torch tensors through the same store.
"""

import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from common.modeling import freeze_below
from deploy.bench.figures import Figure
from deploy.bench.options import Options
from deploy.bench.roofline import Roofline
from deploy.bench.shapes import model_of
from deploy.on_ray.environment import THREADS, protect_local_cluster

WORKERS = 2
WARM_UP = 4
"""Rounds: a store is warm once each place that its buffers take in turn has been written."""
NAIVE_ROUNDS = 2
TOP_LAYERS = 2
STORE_COPIES = 6
"""Size of the object store in buffers."""
WAIT_S = 240.0
LARGE_BYTES = 1 << 28
"""Below, the calls count and not the copies, so that nothing is promised."""
PARTS = ("take", "put", "fetch", "load", "hash", "verify", "pack")


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds of one publish."""

    parts: dict[str, float]
    """Of workers the slower one's."""
    total: float
    """From asking the learner until all have loaded."""
    copy: float
    """Of one copy of as many bytes."""

    def without_hash(self) -> float:
        """What only moves: the hashes and the engine's own preparation are told by themselves."""
        return self.total - sum(self.parts[part] for part in ("hash", "verify", "pack"))


def measure(options: Options, roof: Roofline) -> list[Figure]:
    """All models, one after the other, on a local cluster of their own."""
    protect_local_cluster()
    os.environ.update(THREADS)
    figures: list[Figure] = []
    for name in options.models:
        figures += _model(name, options.rounds, roof.threads)
    return figures


def _model(name: str, rounds: int, threads: int) -> list[Figure]:
    import ray  # reads its environment when it is loaded

    from deploy.bench.publish_actors import PublisherActor, SubscriberActor

    size, part = _sizes(name)
    ray.init(
        address="local", num_cpus=WORKERS + 1, include_dashboard=False, log_to_driver=False, logging_level="error",
        object_store_memory=max(STORE_COPIES * size, 1 << 28),
    )  # fmt: skip
    try:
        publisher = PublisherActor.options(num_cpus=1).remote(name, threads)
        workers = [SubscriberActor.options(num_cpus=1).remote(name) for _ in range(WORKERS)]
        ray.get([publisher.size_bytes.remote(), *(worker.ready.remote() for worker in workers)], timeout=WAIT_S)
        course = _Course(publisher, workers, size)
        measured, naive = [], []
        for number in range(WARM_UP + rounds):
            measured.append(course.publish())
            if number < NAIVE_ROUNDS + 1:
                naive.append(course.naive())
        return _figures(name, measured[WARM_UP:], naive[1:], course.calls / len(measured), part, size)
    finally:
        ray.shutdown()


def _sizes(name: str) -> tuple[int, float]:
    """Bytes of all parameters, and the share of them that travels where only the top layers are trained."""
    model = model_of(name)
    whole = sum(p.numel() for p in model.parameters())
    freeze_below(model, TOP_LAYERS)
    return 4 * whole, sum(p.numel() for p in model.parameters() if p.requires_grad) / whole


class _Course:
    """Publishes one way or the other."""

    def __init__(self, publisher: Any, workers: Sequence[Any], size_bytes: int) -> None:
        self.publisher = publisher
        self.workers = workers
        self.calls = 0
        """Of all publishes by now."""
        self._from, self._to = torch.ones(size_bytes // 4), torch.zeros(size_bytes // 4)
        self._published: Any = None

    def publish(self) -> Round:
        """As a run does it: the buffer of the last time is held until the new one is there."""
        import ray

        start = time.perf_counter()
        buffer, answer = self._call(self.publisher.weights)
        handle, mine = ray.get(answer, timeout=WAIT_S)
        sent = time.perf_counter()
        handle = replace(handle, ref=buffer)
        theirs = ray.get([self._call(worker.adopt, handle) for worker in self.workers], timeout=WAIT_S)
        total = time.perf_counter() - start
        self._published = handle
        parts = mine | {part: max(t[part] for t in theirs) for part in theirs[0]}
        parts["put"] = sent - start - mine["hash"] - mine["take"]
        start = time.perf_counter()
        self._to.copy_(self._from)
        return Round(parts, total, time.perf_counter() - start)

    def naive(self) -> float:
        """Seconds of a dictionary of tensors."""
        import ray

        start = time.perf_counter()
        tensors = self.publisher.tensors.remote()
        ray.get([worker.load.remote(tensors) for worker in self.workers], timeout=WAIT_S)
        return time.perf_counter() - start

    def _call(self, method: Any, *arguments: Any) -> Any:
        self.calls += 1
        return method.remote(*arguments)


def _figures(
    name: str, rounds: Sequence[Round], naive: Sequence[float], calls: float, part: float, size: int
) -> list[Figure]:
    def figure(what: str, seconds: Sequence[float], must: float | None = None, note: str = "") -> list[Figure]:
        copies = statistics.median(s / r.copy for s, r in zip(seconds, rounds, strict=True))
        value = Figure(f"publish.{name}.{what}", copies, "copies", must=must, lower_is_better=True, note=note)
        return [Figure(f"publish.{name}.{what}_seconds", statistics.median(seconds), "s", lower_is_better=True), value]

    must = 3.0 if size >= LARGE_BYTES else None
    whole = [r.total for r in rounds]
    over = statistics.median(naive) / statistics.median(whole)
    return [
        *[f for part in PARTS for f in figure(part, [r.parts.get(part, 0.0) for r in rounds])],
        *figure("moved", [r.without_hash() for r in rounds], must, f"to {WORKERS} workers, without hash and pack"),
        *figure("hashed", [r.parts["hash"] + r.parts["verify"] for r in rounds], note="learner's and workers' hash"),
        *figure("total", whole),
        Figure(f"publish.{name}.calls", calls, "calls", must=1.0 + WORKERS, lower_is_better=True),
        Figure(f"publish.{name}.speedup", over, "x", note="over a dictionary of torch tensors"),
        Figure(
            f"publish.{name}.top_{TOP_LAYERS}_layers", part, "share", note="of the bytes, if only these are trained"
        ),
    ]
