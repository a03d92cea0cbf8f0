"""Members and a learner that sleep for as long as their work would take, and answer with records of the real kind.

What is between them is that of real runs: conductor, pools, supervisor thread, loop. Used by `bench overlap`, which
looks at how long steps take, without what depends on models.
"""

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import numpy as np

from common.checkpoint import ShardFiles
from common.ports import WORK, Call, MemberKey, Reply
from common.records import (
    ChunkHandle,
    GenerateRequest,
    Identity,
    Judgement,
    JudgementChunk,
    Rollout,
    RolloutChunk,
    Stats,
    UpdateReport,
    WeightsHandle,
)
from common.run_settings import RunSettings

THREADS = 32
"""That sleep; more calls than that would wait for each other."""


class SleepingTransport:
    """Members that are names: each carries out one call at a time, in the order in which they came.

    Args:
        generate_s: seconds that a chunk takes, by its index.
        score_s: seconds that judging it takes.
    """

    def __init__(self, *, generate_s: Callable[[int], float], score_s: float) -> None:
        self._generate_s = generate_s
        self._score_s = score_s
        self._turns: defaultdict[MemberKey, threading.Lock] = defaultdict(threading.Lock)
        self._receiver: Callable[[Reply], None] = lambda reply: None
        self._executor = ThreadPoolExecutor(THREADS, thread_name_prefix="sleepers")

    def receive(self, receiver: Callable[[Reply], None]) -> None:
        """Name who gets the replies."""
        self._receiver = receiver

    def start(self, member: MemberKey, *, avoid: str) -> None:
        """A name needs no start."""

    def send(self, call: Call) -> None:
        """Sleep for it in the background."""
        self._executor.submit(self._carry_out, call)

    def _carry_out(self, call: Call) -> None:
        if call.method not in WORK:
            held = call.argument.identity if isinstance(call.argument, WeightsHandle) else ""
            self._receiver(Reply(call.call_id, {"node": "here", "identity": str(held)}))
            return
        with self._turns[call.member]:
            reply = self._generate(call) if call.method == "generate" else self._score(call)
        self._receiver(reply)

    def _generate(self, call: Call) -> Reply:
        time.sleep(self._generate_s(call.argument.chunk_index))
        return Reply(call.call_id, *_generated(call.argument))

    def _score(self, call: Call) -> Reply:
        time.sleep(self._score_s)
        return Reply(call.call_id, *_scored(call.argument))

    def kill(self, member: MemberKey, *, dump: bool) -> None:
        """What it is at runs out."""

    def draining_nodes(self) -> frozenset[str]:
        """Names are on no node."""
        return frozenset()

    def unplaced(self) -> Mapping[MemberKey, str]:
        """There is always room."""
        return {}

    def fetch(self, ref: Any, timeout_s: float) -> Any:
        """The payload itself."""
        return ref

    def close(self) -> None:
        """Once all have woken up."""
        self._executor.shutdown(wait=True, cancel_futures=True)


class SleepingLearner:
    """Implements `common.ports.Learner`.

    Args:
        update_s: seconds that an update takes.
    """

    def __init__(self, update_s: float) -> None:
        self.step = 0
        self.ended_at: list[float] = []
        """When each update ended, by the performance counter."""
        self._update_s = update_s
        self._chunks: Sequence[ChunkHandle] = ()

    def weights(self) -> WeightsHandle:
        """Nothing but a name."""
        return WeightsHandle(Identity(0, self.step), None, self.step, ())

    def prepare(self, chunks: Sequence[ChunkHandle]) -> list[int]:
        """Nothing is lost."""
        self._chunks = chunks
        return []

    def update(self, settings: RunSettings) -> UpdateReport:
        """Sleep."""
        time.sleep(self._update_s)
        self.step += 1
        self.ended_at.append(time.perf_counter())
        trained = tuple(
            (draw, k) for chunk in self._chunks for draw in chunk.draw_indices for k in range(chunk.samples_per_prompt)
        )
        return UpdateReport(self.step, Identity(0, self.step), trained, {}, {})

    def begin_save(self, url: str) -> "Future[ShardFiles]":
        """There is nothing to keep."""
        raise NotImplementedError("nobody asks a sleeping learner for checkpoints")


def _generated(request: GenerateRequest) -> tuple[RolloutChunk, Stats]:
    """Responses of the length that each prompt allows."""
    identity = request.weights.identity
    rollouts = tuple(
        Rollout(p.draw_index, k, request.attempt, 0, np.full(p.max_new_tokens, 7, np.int32),
                np.full(p.max_new_tokens, -1.5, np.float32), identity, "length")
        for p in request.prompts
        for k in range(request.samples_per_prompt)
    )  # fmt: skip
    prompts = tuple(p for p in request.prompts for _ in range(request.samples_per_prompt))
    stats = Stats(samples=len(rollouts), response_tokens=sum(len(r.response_ids) for r in rollouts), identity=identity)
    return RolloutChunk(prompts, rollouts, request.temperature), stats


def _scored(chunk: RolloutChunk) -> tuple[JudgementChunk, Stats]:
    """All score the same."""
    judgements = tuple(Judgement(r.draw_index, r.sample_index, 0.5, {}, "") for r in chunk.rollouts)
    return JudgementChunk(judgements), Stats(samples=len(judgements), scores=tuple(0.5 for _ in judgements))
