"""The conductor: admits samples, sends them on their way, and keeps the ledger.

A pure machine over two pools: replies and time go in, actions come out; it touches no payload, waits for nothing and
knows no Ray. `deploy/ppo/supervisor.py` runs it in a thread of its own. What happens to each chunk of samples is in
`deploy/ppo/chunk_flow.py`.

    ppo.max_staleness     samples for training are sent          an update gets
    0                     when the loop asks for them (Batch)    exactly those, by the weights that it starts from
    1 or more             when weights are published (Stream)    the first complete ones, first come first trained
"""

from collections.abc import Mapping, Sequence
from typing import Any

from actors.admission import capacity
from common.errors import LearnerLostError, LedgerError, MemberFailedError, NonFiniteError
from common.pool import Pool
from common.pool_actions import Action, Note
from common.ports import MemberKey, Reply
from common.records import ChunkHandle, Prompt, UpdateReport, WeightsHandle
from common.run_settings import RunSettings
from common.supervision import Ledger
from deploy.ppo.batch_flow import Batch
from deploy.ppo.chunk_flow import MAX_REGENERATED, ChunkFlow
from deploy.ppo.stream import Stream


class Conductor:
    """Two pools, one ledger, and one batch at a time that somebody waits for.

    Args:
        flow: of chunks through the pools; its prompts are those that training draws from, and its ledger goes on from
            the attempts before this one.
    """

    def __init__(self, flow: ChunkFlow) -> None:
        self._flow = flow
        self.ppo = flow.ppo
        self.prompts = flow.prompts
        self.ledger = flow.ledger
        self._nonfinite_in_a_row = 0
        self._rounds_lost = 0
        """Times that the learner missed payloads of the present batch."""
        self._temperature: float | None = None
        """Of the batch for training that was asked for last."""
        self._awaited: Batch | None = None
        self._stream = Stream.of(self.ppo, self.ledger) if self.ppo.max_staleness > 0 else None
        """Training that runs ahead; None: it does not."""
        self._boundary = self._state()

    @property
    def rollout(self) -> Pool:
        """The pool of workers."""
        return self._flow.rollout

    @property
    def reward(self) -> Pool:
        """The pool of reward replicas."""
        return self._flow.reward

    @property
    def failure(self) -> BaseException | None:
        """Why nothing goes on; the first cause."""
        return self._flow.failure

    # --- what others want

    def publish(self, weights: WeightsHandle, now: float) -> list[Action]:
        """All that is generated from now on comes from these weights; they travel with the next requests."""
        self._flow.weights = weights
        actions = self._flow.take(self.rollout.publish(weights, now), now)
        if self._stream is not None and self._stream.is_open:
            actions += self._feed(self._stream, now)
        return actions

    def current(self) -> WeightsHandle:
        """The weights that were published last."""
        return self._flow.current()

    def resize(self, workers: int | None, replicas: int | None, now: float) -> list[Action]:
        """Change how many members the pools have."""
        actions = [] if workers is None else self.rollout.resize(workers, now)
        return self._flow.take(actions + ([] if replicas is None else self.reward.resize(replicas, now)), now)

    def begin(self, num_samples: int, now: float, settings: RunSettings | None = None) -> list[Action]:
        """Samples for training are wanted; `finished` has them once they are there. None: settings as configured.

        Raises:
            LedgerError: more is asked for than staleness allows, or a part of a group.
            NonFiniteError: too many updates in a row had no finite step.
        """
        if self._nonfinite_in_a_row >= self.ppo.max_nonfinite_updates:
            raise NonFiniteError(
                f"{self._nonfinite_in_a_row} updates in a row had no step with a finite loss and gradient "
                "(ppo.max_nonfinite_updates); lower the learning rate, or look at the scores in samples.jsonl"
            )
        if num_samples % self.ppo.samples_per_prompt:
            raise LedgerError(
                f"{num_samples} samples asked for, which are no whole groups of {self.ppo.samples_per_prompt}"
            )
        if self._stream is not None:
            return self._begin_ahead(self._stream, num_samples, now)
        allowed = capacity(
            step=self._flow.current().identity.step,
            submitted=self.ledger.live,
            batch=self.ppo.trajectories_per_update,
            max_staleness=0,
        )
        if num_samples > allowed:
            raise LedgerError(f"{num_samples} samples asked for where staleness admits {allowed}: {self.ledger}")
        self._temperature = None if settings is None else settings.temperature
        batch = self._awaited = self._batch_of(num_samples)
        return self._flow.send(batch, self.prompts.take(num_samples // self.ppo.samples_per_prompt), now)

    def begin_given(
        self, prompts: Sequence[Prompt], now: float, *, top_p: float = 1.0, weights: WeightsHandle | None = None
    ) -> list[Action]:
        """Start on given prompts, one sample each, outside of training: with a ledger of their own and no refills. By
        `weights`; None: by the published ones.
        """
        batch = self._awaited = Batch(
            len(prompts), Ledger(), refill=False, top_p=top_p, weights=weights, is_ahead=self._stream is not None
        )
        return self._flow.send(batch, prompts, now)

    def begin_again(self, handles: Sequence[ChunkHandle], lost: Sequence[int], now: float) -> list[Action]:
        """Payloads of some chunks went with their node: generate those again, with the same seeds.

        Raises:
            MemberFailedError: it happens again and again: the learner does not reach what workers make.
        """
        self._rounds_lost += 1
        if self._rounds_lost > MAX_REGENERATED:
            raise MemberFailedError(
                f"the learner missed payloads {self._rounds_lost} times in a row; can its node reach those of the "
                "rollout workers and reward replicas?"
            )
        batch = self._awaited = self._batch_of(sum(handle.num_samples for handle in handles))
        told = f"payloads of {len(lost)} chunks are lost, and are generated and judged once more"
        actions: list[Action] = [Note("regenerate", "", told)]
        for index, handle in enumerate(handles):
            if index not in lost:
                batch.add(handle)
                continue
            self.ledger.lose(handle.num_samples)
            prompts = tuple(self.prompts.prompt_at(draw) for draw in handle.draw_indices)
            actions += self._flow.send_chunk(batch, handle.chunk_index, prompts, now)
        return actions

    def finished(self) -> list[ChunkHandle] | None:
        """What somebody waits for, in draw order of its chunks, handed out once, when it is complete."""
        if self._awaited is None or self.failure is not None or (handles := self._awaited.finished()) is None:
            return None
        self._awaited.ledger.check()
        self._awaited = None
        return handles

    def account(self, report: UpdateReport) -> None:
        """Book the samples that an update trained on, or that a step without a finite gradient used up."""
        wanted = self.ppo.trajectories_per_update
        self._nonfinite_in_a_row = 0 if report.is_finite else self._nonfinite_in_a_row + 1
        if not report.is_finite:
            self.ledger.drop("nonfinite_update", wanted, buffered=True)
        elif len(report.trained) != wanted:
            raise LedgerError(
                f"update {report.step} trained on {len(report.trained)} samples, not on the "
                f"{wanted} that were collected for it"
            )
        else:
            self.ledger.train(wanted)
        if self._stream is not None:
            self._stream.handed_out = 0
        self.ledger.check()
        self._boundary = self._state()
        self._rounds_lost = 0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: prompt cursor, ledger and, where training runs ahead, what was on its way, after the
        last update; what came later is done again.
        """
        return self._boundary

    def roll_back(self, state: Mapping[str, Any], now: float) -> list[Action]:
        """Go back to a checkpoint: its cursor, and all later work is of a dead lineage. What was on its way then comes
        first, once weights are published.
        """
        self.abandon()
        self.prompts.load_state_dict(state)
        if self._stream is not None:
            self._stream.restart(state)
        self.ledger.roll_back(int(state["ledger"]["trained"]))
        self._rounds_lost = 0
        if isinstance(self.failure, LearnerLostError):
            self._flow.failure = None  # that is what is being mended
        self.ledger.check()
        self._boundary = self._state()
        return self._flow.take([], now)

    def abandon(self) -> None:
        """Nobody waits for anything any more; samples stay in flight or buffered until they are rolled back."""
        self._flow.abandon()
        self._awaited = None

    # --- what happens

    def on_reply(self, reply: Reply, now: float) -> list[Action]:
        """A call is answered; unknown ones are late echoes of calls that are answered."""
        for pool in (self.rollout, self.reward):
            if pool.owns(reply):
                return self._flow.take(pool.on_reply(reply, now), now)
        return []

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        return self._flow.take(self.rollout.tick(now) + self.reward.tick(now), now)

    def leave_nodes(self, nodes: frozenset[str], now: float) -> list[Action]:
        """Nodes are about to go."""
        return self._flow.take(self.rollout.leave_nodes(nodes, now) + self.reward.leave_nodes(nodes, now), now)

    def place(self, unplaced: Mapping[MemberKey, str], now: float) -> list[Action]:
        """These members have no node yet."""
        return self.rollout.place(unplaced, now) + self.reward.place(unplaced, now)

    # --- inside

    def _begin_ahead(self, stream: Stream, num_samples: int, now: float) -> list[Action]:
        """The update may begin once it can be filled; more may be sent, as after one without a finite step."""
        stream.step = self._flow.current().identity.step
        there = stream.outstanding() + stream.room()
        if num_samples != stream.wanted or there < num_samples:
            raise LedgerError(
                f"{num_samples} samples asked for where an update has {stream.wanted} and staleness admits {there}: "
                f"{self.ledger}"
            )
        stream.is_open = True
        self._awaited = stream
        return self._feed(stream, now)

    def _feed(self, stream: Stream, now: float) -> list[Action]:
        """Send what admission lets through: all of it, the last chunk may be short."""
        stream.step = self._flow.current().identity.step
        return self._flow.send(stream, stream.draw(self.prompts, stream.room() // stream.samples_per_prompt), now)

    def _batch_of(self, num_samples: int) -> Batch:
        """An empty one for training."""
        return Batch(
            num_samples,
            self.ledger,
            refill=True,
            samples_per_prompt=self.ppo.samples_per_prompt,
            temperature=self._temperature,
            is_ahead=self._stream is not None,
        )

    def _state(self) -> dict[str, Any]:
        state = {**self.prompts.state_dict(), "ledger": self.ledger.as_dict()}
        return state if self._stream is None else state | {"undelivered": self._stream.undelivered()}
