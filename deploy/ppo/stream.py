"""Samples for training where generation runs ahead of learning (`ppo.max_staleness` of 1 or more).

    published ─▶ feed ─▶ chunks on their way ─▶ ready, first come first ─▶ finished: an update's samples
                  ▲                                       │
                  └── admission: so many updates ahead    └── the rest stays for the next update

An open end in the place of `Batch`: chunks are sent whenever weights are published, and the learner takes the first
samples that are complete. Nothing is thrown away for its age, so that a prompt whose response takes long counts as much
as others. Pure, as the conductor that owns it.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from actors.admission import capacity
from actors.prompts import PromptStream
from common.ppo_config import PPOConfig
from common.records import ChunkHandle, Prompt
from common.supervision import Ledger
from deploy.ppo.batch_flow import Batch


@dataclass(slots=True)
class Stream(Batch):
    """What is on its way for this update and those after it; `wanted` is what one update takes."""

    again: deque[int] = field(default_factory=deque)
    """Draws that come before those of the prompt stream: a checkpoint knew them as on their way."""
    handed_out: int = 0
    """Samples that the learner has, and that are not booked yet."""
    is_open: bool = False
    """Whether the loop has asked for samples, since the beginning or since it went back."""
    step: int = 0
    """Updates behind the published weights."""
    max_staleness: int = 1
    updates: int = 0
    """Of the whole run: nothing is generated that no update is left for."""

    @classmethod
    def of(cls, config: PPOConfig, ledger: Ledger) -> "Stream":
        """An empty one of a PPO stage."""
        return cls(
            config.trajectories_per_update,
            ledger,
            refill=True,
            samples_per_prompt=config.samples_per_prompt,
            max_staleness=config.max_staleness,
            updates=config.updates,
        )

    def room(self) -> int:
        """Samples that staleness, and the end of the run, admit now."""
        submitted = self.ledger.trained + self.handed_out + self.outstanding()
        ahead = min(self.max_staleness, self.updates - 1 - self.step)
        return capacity(step=self.step, submitted=submitted, batch=self.wanted, max_staleness=ahead)

    def outstanding(self) -> int:
        """Samples that are ready or on their way, without those that the learner has."""
        return self.num_ready + self.num_sent

    def due(self) -> int:
        """Samples to send before others are admitted: those without which the next update could not be filled.

        Where a few are dropped and others are on their way, the gap waits until weights are published: chunks of single
        samples would cost more than they bring.
        """
        return min(self.room(), max(0, self.wanted - self.outstanding()))

    def draw(self, prompts: PromptStream, number: int) -> Sequence[Prompt]:
        """What a checkpoint left to do, then the next prompts."""
        first = [prompts.prompt_at(self.again.popleft()) for _ in range(min(number, len(self.again)))]
        return (*first, *prompts.take(number - len(first)))

    def finished(self) -> list[ChunkHandle] | None:
        """As many as an update takes, in draw order of their chunks; where the last chunk has more, it is parted."""
        if self.num_ready < self.wanted:
            return None
        taken, missing = list[ChunkHandle](), self.wanted
        while missing:
            handle = self.ready.popleft()
            if handle.num_samples > missing:
                cut = missing // self.samples_per_prompt
                self.ready.appendleft(replace(handle, draw_indices=handle.draw_indices[cut:]))
                handle = replace(handle, draw_indices=handle.draw_indices[:cut])
            taken.append(handle)
            missing -= handle.num_samples
        self.num_ready -= self.wanted
        self.handed_out = self.wanted
        self.dropped.clear()
        return sorted(taken, key=lambda handle: handle.chunk_index)

    def undelivered(self) -> list[int]:
        """Draws that were asked for, and that no update has used up; told between two updates."""
        return sorted(self._undelivered())

    def _undelivered(self) -> Iterator[int]:
        yield from self.again
        for chunk in self.chunks.values():
            yield from (prompt.draw_index for prompt in chunk.request.prompts)
        for handle in self.ready:
            yield from handle.draw_indices

    def restart(self, state: Mapping[str, Any]) -> None:
        """Forget what is on its way, and go on as a checkpoint says."""
        self.chunks.clear()
        self.ready.clear()
        self.dropped.clear()
        self.num_ready = self.num_sent = self.handed_out = 0
        self.is_open = False
        self.again = deque(state.get("undelivered", ()))


def draws_used(state: Mapping[str, Any]) -> int:
    """Prompts that updates have used up, in the state of a conductor: it grows with every attempt at an update."""
    return int(state["next_draw_index"]) - len(state.get("undelivered", ()))
