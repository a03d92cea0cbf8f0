"""What the conductor remembers of a batch and of each of its chunks while they are on their way.

What is asked for ahead of learning is in `stream.py`.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from actors.prompts import PromptStream
from common.ports import Method
from common.records import ChunkHandle, GenerateRequest, Prompt, Stats, WeightsHandle
from common.supervision import Ledger


@dataclass(slots=True)
class Chunk:
    """A chunk on its way: references to payloads, never payloads."""

    request: GenerateRequest
    batch: "Batch"
    """What it is a part of."""
    tasks: set[int] = field(default_factory=set)
    """What is asked for and not answered."""
    rollouts: Any = None
    rollout_stats: Stats | None = None
    judgements: Any = None
    judge_stats: Stats | None = None
    reference: Any = None
    regenerated: int = 0
    """Times that its payload was lost with a node."""

    def drops(self) -> Iterator[tuple[str, int, str]]:
        """Reason, number and detail of dropped samples: each one without a score, then the others of their groups."""
        assert self.judge_stats is not None, "score is answered"
        unscored = self.judge_stats.unscored
        for one in unscored:
            yield one.reason, 1, one.detail
        groups = {one.draw_index for one in unscored}
        if others := len(groups) * self.request.samples_per_prompt - len(unscored):
            yield "group_incomplete", others, ""

    def handle(self) -> ChunkHandle:
        """What the learner gets: the draws all of whose samples have a score."""
        assert self.rollout_stats is not None, "generate is answered first"
        assert self.judge_stats is not None, "then score"
        without = {u.draw_index for u in self.judge_stats.unscored}
        return ChunkHandle(
            chunk_index=self.request.chunk_index,
            draw_indices=tuple(p.draw_index for p in self.request.prompts if p.draw_index not in without),
            rollouts=self.rollouts,
            judgements=self.judgements,
            reference=self.reference,
            rollout_stats=self.rollout_stats,
            judge_stats=self.judge_stats,
            samples_per_prompt=self.request.samples_per_prompt,
        )


@dataclass(slots=True)
class Batch:
    """What somebody waits for."""

    wanted: int
    """Samples."""
    ledger: Ledger
    refill: bool
    """Replace what is dropped by the next draws."""
    samples_per_prompt: int = 1
    top_p: float = 1.0
    temperature: float | None = None
    """None: that of the configuration."""
    weights: WeightsHandle | None = None
    """None: those that are published."""
    is_ahead: bool = False
    """It goes before what waits in the pools already."""
    chunks: dict[int, Chunk] = field(default_factory=dict)
    """On their way, by chunk index."""
    num_sent: int = 0
    """Samples of those."""
    ready: deque[ChunkHandle] = field(default_factory=deque)
    """Judged, first come first."""
    num_ready: int = 0
    """Samples of those."""
    dropped: dict[str, int] = field(default_factory=dict)
    """By reason."""
    detail: str = ""
    """Why the last one was dropped."""

    def send(self, chunk: Chunk) -> None:
        """A chunk sets out."""
        self.chunks[chunk.request.chunk_index] = chunk
        self.num_sent += chunk.request.num_samples

    def close(self, chunk: Chunk) -> None:
        """A chunk is judged or given up."""
        del self.chunks[chunk.request.chunk_index]
        self.num_sent -= chunk.request.num_samples

    def add(self, handle: ChunkHandle) -> None:
        """Samples are ready."""
        self.ready.append(handle)
        self.num_ready += handle.num_samples

    def drop(self, reason: str, samples: int, detail: str) -> None:
        """Samples are given up."""
        self.ledger.drop(reason, samples)
        self.dropped[reason] = self.dropped.get(reason, 0) + samples
        self.detail = detail or self.detail

    def questions(self, *, with_reference: bool) -> tuple[Method, ...]:
        """What the reward service is asked of a chunk; of given prompts, the judge and, always, the KL."""
        if not self.refill:
            return ("evaluate", "reference")
        return ("score", "reference") if with_reference else ("score",)

    def missing(self) -> int:
        """Samples that are still to come, where those on their way come too: the wanted less the judged ones."""
        return self.wanted - self.num_ready

    def due(self) -> int:
        """Samples to send now: once a round is over, one for each that was dropped."""
        return 0 if self.chunks or not self.refill else self.missing()

    def draw(self, prompts: PromptStream, number: int) -> Sequence[Prompt]:
        """The next prompts."""
        return prompts.take(number)

    def finished(self) -> list[ChunkHandle] | None:
        """All in draw order, once they are there."""
        return None if self.chunks else sorted(self.ready, key=lambda handle: handle.chunk_index)
