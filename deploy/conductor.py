"""The conductor: sends chunks of prompts to workers, their rollouts to the reward service, and keeps the ledger.

It runs in the driver and never touches payloads. It moves calls and replies between two pure pools (who does what) and
a transport (how it travels): `deploy/local.py` for one process, `deploy/cluster.py` for Ray.

    prompts ─▶ generate ─▶ score ─────▶ ChunkHandle ─▶ learner
                        └▶ reference ─┘
"""

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import JsonValue

from actors.admission import capacity
from actors.prompts import PromptStream
from common.config import RunConfig
from common.errors import LedgerError
from common.metrics import RunMetrics
from common.pool import Pool
from common.ports import Reply, Transport
from common.ppo_config import PPOConfig
from common.records import ChunkHandle, GenerateRequest, Prompt, Stats, UpdateReport, WeightsHandle
from common.supervision import Ledger
from deploy.stopwatch import Stopwatch

POLL_S = 1.0
"""Longest time between two looks at the deadlines."""


@dataclass(slots=True)
class _Chunk:
    """A chunk on its way."""

    request: GenerateRequest
    rollouts: Any = None
    rollout_stats: Stats | None = None
    judgements: Any = None
    judge_stats: Stats | None = None
    reference: Any = None


class Conductor:
    """Source of judged samples: implements `common.ports.Rollouts`.

    Args:
        config: the run; its PPO stage must be present.
        prompts: the stream that training draws from.
        transport: carries calls.
        workers: names of the rollout workers.
        replicas: names of the reward replicas.
        metrics: told of every reply.
        watch: told the driver's wall time of collecting, and the members' own seconds by phase, summed.
        with_reference: ask the reward service for reference logprobs too.
        clock: seconds, for deadlines; a test may turn it.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        prompts: PromptStream,
        transport: Transport,
        workers: Sequence[str],
        replicas: Sequence[str],
        metrics: RunMetrics,
        watch: Stopwatch,
        with_reference: bool,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        assert config.ppo is not None, "a conductor is of a PPO stage"
        self.ppo: PPOConfig = config.ppo
        self.chunk_sequences = config.rollout.chunk_sequences
        self.run_seed = config.seed
        self.prompts = prompts
        self.transport = transport
        self.metrics = metrics
        self.watch = watch
        self.with_reference = with_reference
        self.clock = clock
        self.ledger = Ledger()
        ids = itertools.count()
        deadline_s = config.rollout.request_timeout_s
        self.rollout_pool = Pool("rollout", workers, deadline_s=deadline_s, call_ids=ids)
        self.reward_pool = Pool("reward", replicas, deadline_s=deadline_s, call_ids=ids)
        self._weights: WeightsHandle | None = None
        self._chunk_indices = itertools.count()

    def publish(self, weights: WeightsHandle) -> None:
        """All that is generated from now on comes from these weights; they travel with the next requests."""
        self._weights = weights

    def collect(self, num_samples: int) -> list[ChunkHandle]:
        """Exactly `num_samples` samples, generated and judged, in draw order.

        Raises:
            LedgerError: more is asked for than staleness allows.
            MemberFailedError, PhaseTimeoutError: see `common.pool.Pool`.
        """
        allowed = capacity(
            step=self._current().identity.step,
            submitted=self.ledger.dispatched,
            batch=self.ppo.trajectories_per_update,
            max_staleness=self.ppo.max_staleness,
        )
        if num_samples > allowed:
            raise LedgerError(f"{num_samples} samples asked for where staleness admits {allowed}: {self.ledger}")
        with self.watch.phase("collect"):
            self.ledger.dispatch(num_samples)
            handles = self._run(self.prompts.take(num_samples))
            self.ledger.buffer(num_samples)
            self.ledger.check()
        return handles

    def sample(self, prompts: Sequence[Prompt]) -> list[ChunkHandle]:
        """Generate and judge given prompts outside of training; not in the ledger."""
        return self._run(tuple(prompts))

    def account(self, report: UpdateReport) -> None:
        """Book the samples that an update trained on."""
        if len(report.trained) != self.ppo.trajectories_per_update:
            raise LedgerError(
                f"update {report.step} trained on {len(report.trained)} samples, not on the "
                f"{self.ppo.trajectories_per_update} that were collected for it"
            )
        self.ledger.train(len(report.trained))
        self.ledger.check()
        self.metrics.ledger(self.ledger)

    def state_dict(self) -> dict[str, JsonValue]:
        """What a checkpoint keeps: where the prompt stream is, and the ledger."""
        ledger: dict[str, JsonValue] = dict(self.ledger.as_dict())  # type: ignore[arg-type]
        return {"prompts": dict(self.prompts.state_dict()), "ledger": ledger}

    def _current(self) -> WeightsHandle:
        if self._weights is None:
            raise RuntimeError("publish weights before collecting")
        return self._weights

    def _run(self, prompts: tuple[Prompt, ...]) -> list[ChunkHandle]:
        """Generate and judge prompts in fixed chunks; returns when all are done."""
        chunks: dict[int, _Chunk] = {}
        waiting: dict[int, tuple[_Chunk, str]] = {}
        for start in range(0, len(prompts), self.chunk_sequences):
            part = prompts[start : start + self.chunk_sequences]
            request = GenerateRequest(
                chunk_index=next(self._chunk_indices),
                attempt=0,
                prompts=part,
                fill=self.chunk_sequences - len(part),
                run_seed=self.run_seed,
                temperature=self.ppo.temperature,
                weights=self._current(),
            )
            chunk = chunks[request.chunk_index] = _Chunk(request)
            waiting[self.rollout_pool.submit("generate", request)] = (chunk, "generate")
        while waiting:
            self._send_due()
            for reply in self.transport.wait(POLL_S):
                chunk, method = waiting.pop(reply.call_id)
                self._settle(reply)
                waiting.update(self._follow_up(chunk, method, reply))
            self._check_deadlines()
        return [self._handle(chunks[index]) for index in sorted(chunks)]

    def _send_due(self) -> None:
        now = self.clock()
        for pool in (self.reward_pool, self.rollout_pool):  # what is nearly done goes first
            for call in pool.due(now):
                self.transport.send(call)

    def _settle(self, reply: Reply) -> None:
        pool = self.rollout_pool if self.rollout_pool.owns(reply) else self.reward_pool
        member = pool.settle(reply)
        if reply.stats is not None:
            self.metrics.member(pool.role, member, reply.stats)
            self.watch.add(reply.stats.seconds)

    def _follow_up(self, chunk: _Chunk, method: str, reply: Reply) -> dict[int, tuple[_Chunk, str]]:
        """Keep what came, and ask for what comes next."""
        if method == "score":
            chunk.judgements, chunk.judge_stats = reply.payload, reply.stats
        elif method == "reference":
            chunk.reference = reply.payload
        else:
            chunk.rollouts, chunk.rollout_stats = reply.payload, reply.stats
            calls = {self.reward_pool.submit("score", reply.payload): (chunk, "score")}
            if self.with_reference:
                calls[self.reward_pool.submit("reference", reply.payload)] = (chunk, "reference")
            return calls
        return {}

    def _check_deadlines(self) -> None:
        now = self.clock()
        self.rollout_pool.check_deadlines(now)
        self.reward_pool.check_deadlines(now)

    @staticmethod
    def _handle(chunk: _Chunk) -> ChunkHandle:
        assert chunk.rollout_stats is not None, "generate is answered first"
        assert chunk.judge_stats is not None, "then score"
        return ChunkHandle(
            chunk_index=chunk.request.chunk_index,
            draw_indices=tuple(p.draw_index for p in chunk.request.prompts),
            rollouts=chunk.rollouts,
            judgements=chunk.judgements,
            reference=chunk.reference,
            rollout_stats=chunk.rollout_stats,
            judge_stats=chunk.judge_stats,
        )
