"""The conductor: admits batches of samples, sends them on their way, and keeps the ledger.

A pure machine over two pools: replies and time go in, actions come out; it touches no payload, waits for nothing and
knows no Ray. `deploy/ppo/supervisor.py` runs it in a thread of its own. What happens to each chunk of samples is in
`deploy/ppo/chunk_flow.py`.
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


class Conductor:
    """Two pools, one ledger, one batch at a time.

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
        return self._flow.take(self.rollout.publish(weights, now), now)

    def current(self) -> WeightsHandle:
        """The weights that were published last."""
        return self._flow.current()

    def resize(self, workers: int | None, replicas: int | None, now: float) -> list[Action]:
        """Change how many members the pools have."""
        actions = [] if workers is None else self.rollout.resize(workers, now)
        return self._flow.take(actions + ([] if replicas is None else self.reward.resize(replicas, now)), now)

    def begin(self, num_samples: int, now: float, settings: RunSettings | None = None) -> list[Action]:
        """Start on samples for training; `finished` has them once they are there. None: settings as configured.

        Raises:
            LedgerError: more is asked for than staleness allows, or a part of a group.
            NonFiniteError: too many updates in a row had no finite step.
        """
        if self._nonfinite_in_a_row >= self.ppo.max_nonfinite_updates:
            raise NonFiniteError(
                f"{self._nonfinite_in_a_row} updates in a row had no step with a finite loss and gradient "
                "(ppo.max_nonfinite_updates); lower the learning rate, or look at the scores in samples.jsonl"
            )
        step = self._flow.current().identity.step
        batch, staleness = self.ppo.trajectories_per_update, self.ppo.max_staleness
        allowed = capacity(step=step, submitted=self.ledger.live, batch=batch, max_staleness=staleness)
        if num_samples > allowed:
            raise LedgerError(f"{num_samples} samples asked for where staleness admits {allowed}: {self.ledger}")
        num_prompts, rest = divmod(num_samples, self.ppo.samples_per_prompt)
        if rest:
            raise LedgerError(
                f"{num_samples} samples asked for, which are no whole groups of {self.ppo.samples_per_prompt}"
            )
        self._temperature = None if settings is None else settings.temperature
        return self._flow.begin(self._batch_of(num_samples), self.prompts.take(num_prompts), now)

    def begin_given(self, prompts: Sequence[Prompt], now: float, *, top_p: float = 1.0) -> list[Action]:
        """Start on given prompts, one sample each, outside of training: with a ledger of their own and no refills."""
        return self._flow.begin(Batch(len(prompts), Ledger(), refill=False, top_p=top_p), prompts, now)

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
        batch = self._flow.batch = self._batch_of(sum(handle.num_samples for handle in handles))
        told = f"payloads of {len(lost)} chunks are lost, and are generated and judged once more"
        actions: list[Action] = [Note("regenerate", "", told)]
        for index, handle in enumerate(handles):
            if index not in lost:
                batch.ready.append(handle)
                continue
            self.ledger.lose(handle.num_samples)
            prompts = tuple(self.prompts.prompt_at(draw) for draw in handle.draw_indices)
            actions += self._flow.send_chunk(batch, handle.chunk_index, prompts, now)
        return actions

    def finished(self) -> list[ChunkHandle] | None:
        """The batch in draw order, handed out once, when it is complete."""
        batch = self._flow.batch
        if batch is None or batch.chunks or self.failure is not None:
            return None
        batch.ledger.check()
        self._flow.batch = None
        return sorted(batch.ready, key=lambda handle: handle.chunk_index)

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
        self.ledger.check()
        self._boundary = self._state()
        self._rounds_lost = 0

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: prompt cursor and ledger after the last update; what came later is done again."""
        return self._boundary

    def roll_back(self, state: Mapping[str, Any], now: float) -> list[Action]:
        """Go back to a checkpoint: its cursor, and all later work is of a dead lineage."""
        self.abandon()
        self.prompts.load_state_dict(state)
        self.ledger.roll_back(int(state["ledger"]["trained"]))
        self._rounds_lost = 0
        if isinstance(self.failure, LearnerLostError):
            self._flow.failure = None  # that is what is being mended
        self.ledger.check()
        self._boundary = self._state()
        return self._flow.take([], now)

    def abandon(self) -> None:
        """Nobody waits for the batch any more; its samples stay in flight or buffered until they are rolled back."""
        self._flow.abandon()

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

    def _batch_of(self, num_samples: int) -> Batch:
        """An empty one for training."""
        return Batch(
            num_samples,
            self.ledger,
            refill=True,
            samples_per_prompt=self.ppo.samples_per_prompt,
            temperature=self._temperature,
        )

    def _state(self) -> dict[str, Any]:
        return {**self.prompts.state_dict(), "ledger": self.ledger.as_dict()}
