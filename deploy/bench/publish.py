"""Benchmark `publish`: from the learner's memory into the memory of two workers, through Ray's object store.

The other way is a dictionary of torch tensors through the same store, in turns with ours. A publish is one call of the
learner and one of each worker by construction, whatever the number of tensors: there is no figure of that.

Everything is counted in copies: the time in which this machine copies as many bytes from memory to memory, measured in
the same rounds. *Moved* is the time until the last worker would have its weights if hashing and packing cost nothing:
from asking the learner until each worker's answer is here, calls and waking included, less the learner's hash and less
that same worker's own verifying and packing; of the workers the longest one.

    learner   │ hash │ put │                           total: until the last answer
    worker 0               │ fetch │ verify │ load │ pack │
    worker 1               │ fetch   │ verify   │ load   │ pack   │
"""

import functools
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from common.modeling import freeze_below
from deploy.bench.figures import Figure
from deploy.bench.interleave import Timed, speedup, take_turns
from deploy.bench.options import Options
from deploy.bench.roofline import Roofline
from deploy.bench.shapes import model_of
from deploy.on_ray.environment import THREADS, protect_local_cluster

WORKERS = 2
WARM_UP = 4
"""Rounds of both ways: a store is warm once each place that their objects take in turn has been written."""
TOP_LAYERS = 2
STORE_COPIES = 6
"""Size of the object store in buffers. Three are there at once: the last publish, the next one, the dictionary; the
rest is room for gaps between them, so that nobody has to wait for another's place."""
WAIT_S = 240.0
LARGE_BYTES = 1 << 28
"""Below, the calls count and not the copies, so that nothing is promised."""
PARTS = ("take", "put", "fetch", "load", "hash", "verify", "pack")


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds of one publish."""

    parts: dict[str, float]
    """Of workers the slower one's, so that they need not add up."""
    moved: float
    """See above."""
    total: float
    """From asking the learner until all have loaded."""
    copy: float
    """Of one copy of as many bytes."""


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
        course = Course(
            publisher, workers, size,
            get=functools.partial(ray.get, timeout=WAIT_S), wait=functools.partial(ray.wait, timeout=WAIT_S),
        )  # fmt: skip
        timed = take_turns({"ours": course.publish, "tensors": course.tensors}, rounds=rounds, warm_up=WARM_UP)
        return figures_of(name, course.rounds[WARM_UP:], timed, part, size)
    finally:
        ray.shutdown()


def _sizes(name: str) -> tuple[int, float]:
    """Bytes of all parameters, and the share of them that travels where only the top layers are trained."""
    model = model_of(name)
    whole = sum(p.numel() for p in model.parameters())
    freeze_below(model, TOP_LAYERS)
    return 4 * whole, sum(p.numel() for p in model.parameters() if p.requires_grad) / whole


class Course:
    """Publishes one way or the other.

    Args:
        publisher: who has the weights.
        workers: who want them.
        size_bytes: of the weights.
        get: `ray.get` with a deadline.
        wait: `ray.wait` with one.
    """

    def __init__(
        self,
        publisher: Any,
        workers: Sequence[Any],
        size_bytes: int,
        *,
        get: Callable[[Any], Any],
        wait: Callable[[list[Any]], tuple[list[Any], list[Any]]],
    ) -> None:
        self.rounds: list[Round] = []
        """Of `publish`, warm-up included."""
        self._publisher = publisher
        self._workers = workers
        self._get = get
        self._wait = wait
        self._from, self._to = torch.ones(size_bytes // 4), torch.zeros(size_bytes // 4)
        self._published: Any = None

    def publish(self) -> float:
        """Seconds of ours: as a run does it, the buffer of the last time is held until the new one is there."""
        start = time.perf_counter()
        buffer, told = self._publisher.weights.remote()
        handle, mine = self._get(told)
        sent_s = time.perf_counter() - start
        handle = replace(handle, ref=buffer)
        asked = [worker.adopt.remote(handle) for worker in self._workers]
        waiting = asked
        answered_s: dict[Any, float] = {}
        while waiting:
            ready, waiting = self._wait(waiting)
            answered_s |= dict.fromkeys(ready, time.perf_counter() - start)
            if not ready:
                break  # past its deadline: `get` says so
        theirs = self._get(asked)
        self._published = handle
        moved_s = max(
            answered_s[answer] - seconds["verify"] - seconds["pack"]
            for answer, seconds in zip(asked, theirs, strict=True)
        )
        parts = mine | {part: max(seconds[part] for seconds in theirs) for part in theirs[0]}
        parts["put"] = sent_s - mine["hash"] - mine["take"]
        total_s = max(answered_s.values())
        self.rounds.append(Round(parts, moved_s - mine["hash"], total_s, self._copy_s()))
        return total_s

    def tensors(self) -> float:
        """Seconds of a dictionary of tensors."""
        start = time.perf_counter()
        tensors = self._publisher.tensors.remote()
        self._get([worker.load.remote(tensors) for worker in self._workers])
        return time.perf_counter() - start

    def _copy_s(self) -> float:
        start = time.perf_counter()
        self._to.copy_(self._from)
        return time.perf_counter() - start


def figures_of(name: str, rounds: Sequence[Round], timed: Timed, share: float, size: int) -> list[Figure]:
    """Of one model.

    Args:
        name: of the model.
        rounds: of ours, measured.
        timed: seconds of `ours` and of `tensors`, round by round.
        share: of the bytes that travels if only the top layers are trained.
        size: in bytes.
    """

    def figure(what: str, seconds: Sequence[float], must: float | None = None, note: str = "") -> list[Figure]:
        copies = statistics.median(s / r.copy for s, r in zip(seconds, rounds, strict=True))
        value = Figure(f"publish.{name}.{what}", copies, "copies", must=must, lower_is_better=True, note=note)
        return [Figure(f"publish.{name}.{what}_seconds", statistics.median(seconds), "s", lower_is_better=True), value]

    must = 3.0 if size >= LARGE_BYTES else None
    return [
        *[f for part in PARTS for f in figure(part, [r.parts.get(part, 0.0) for r in rounds])],
        *figure("moved", [r.moved for r in rounds], must, f"to {WORKERS} workers, without hash and pack"),
        *figure("hashed", [r.parts["hash"] + r.parts["verify"] for r in rounds], note="learner's and workers' hash"),
        *figure("total", [r.total for r in rounds]),
        *figure("tensors", timed["tensors"], note="a dictionary of tensors instead"),
        Figure(f"publish.{name}.speedup", speedup(timed, "ours", "tensors"), "x", note="over a dictionary of tensors"),
        Figure(
            f"publish.{name}.top_{TOP_LAYERS}_layers", share, "share", note="of the bytes, if only these are trained"
        ),
    ]
