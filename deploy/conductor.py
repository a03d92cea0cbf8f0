"""The conductor: sends chunks of prompts to workers, their rollouts to the reward service, and keeps the ledger.

A pure machine over two pools: replies and time go in, actions come out; it touches no payload, waits for nothing and
knows no Ray. `deploy/supervisor.py` runs it in a thread of its own.

    prompts ─▶ generate ─▶ score ─────▶ ChunkHandle ─▶ learner
       ▲                └▶ reference ─┘      │
       └── next draws for what was dropped ──┘   in rounds: each waits for the one before, so that chunks do not
                                                 depend on who was fast
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from actors.admission import capacity
from actors.prompts import PromptStream
from common.config import RunConfig
from common.errors import LearnerLostError, LedgerError, MemberFailedError, NonFiniteError, TooManyDropsError
from common.pool import Pool
from common.pool_actions import Action, Done, Duplicate, Failed, GaveUp, LostArgument, Note
from common.ports import Reply
from common.ppo_config import PPOConfig
from common.records import ChunkHandle, GenerateRequest, Prompt, UpdateReport, WeightsHandle
from common.supervision import Ledger, Limits
from deploy.batch_flow import Batch, Chunk

MAX_REGENERATED = 5
"""Times that one chunk may lose its payload with a node before the run stops."""


class Conductor:
    """Two pools, one ledger, one batch at a time.

    Args:
        config: the run; its PPO stage must be present.
        prompts: the stream that training draws from.
        rollout: what the pool of workers is held to.
        reward: what the pool of reward replicas is held to.
        with_reference: ask the reward service for reference logprobs too.
        ledger: of the attempts before this one.
    """

    def __init__(
        self,
        config: RunConfig,
        *,
        prompts: PromptStream,
        rollout: Limits,
        reward: Limits,
        with_reference: bool,
        ledger: Ledger,
    ) -> None:
        assert config.ppo is not None, "a conductor is of a PPO stage"
        self.ppo: PPOConfig = config.ppo
        self.chunk_sequences = config.rollout.chunk_sequences
        self.run_seed = config.seed
        self.prompts = prompts
        ids = itertools.count()  # of both pools, so that they know their own replies
        self.rollout = Pool("rollout", rollout, call_ids=ids)
        self.reward = Pool("reward", reward, call_ids=ids)
        self.with_reference = with_reference
        self.ledger = ledger
        self.failure: BaseException | None = None
        """Why nothing goes on; the first cause."""
        self._weights: WeightsHandle | None = None
        self._chunk_indices = itertools.count()
        self._batch: Batch | None = None
        self._tasks: dict[int, Chunk] = {}
        self._nonfinite_in_a_row = 0
        self._rounds_lost = 0
        """Times that the learner missed payloads of the present batch."""
        self._boundary = self._state()

    # --- what others want

    def publish(self, weights: WeightsHandle, now: float) -> list[Action]:
        """All that is generated from now on comes from these weights; they travel with the next requests."""
        self._weights = weights
        return self._take(self.rollout.publish(weights, now), now)

    def current(self) -> WeightsHandle:
        """The weights that were published last."""
        if self._weights is None:
            raise RuntimeError("publish weights before collecting")
        return self._weights

    def resize(self, workers: int | None, replicas: int | None, now: float) -> list[Action]:
        """Change how many members the pools have."""
        actions = [] if workers is None else self.rollout.resize(workers, now)
        return self._take(actions + ([] if replicas is None else self.reward.resize(replicas, now)), now)

    def begin(self, num_samples: int, now: float) -> list[Action]:
        """Start on samples for training; `finished` has them once they are there.

        Raises:
            LedgerError: more is asked for than staleness allows.
            NonFiniteError: too many updates in a row had no finite step.
        """
        if self._nonfinite_in_a_row >= self.ppo.max_nonfinite_updates:
            raise NonFiniteError(
                f"{self._nonfinite_in_a_row} updates in a row had no step with a finite loss and gradient "
                "(ppo.max_nonfinite_updates); lower the learning rate, or look at the scores in samples.jsonl"
            )
        step = self.current().identity.step
        batch, staleness = self.ppo.trajectories_per_update, self.ppo.max_staleness
        allowed = capacity(step=step, submitted=self.ledger.live, batch=batch, max_staleness=staleness)
        if num_samples > allowed:
            raise LedgerError(f"{num_samples} samples asked for where staleness admits {allowed}: {self.ledger}")
        self._batch = Batch(num_samples, self.ledger, refill=True)
        return self._round(self._batch, self.prompts.take(num_samples), now)

    def begin_given(self, prompts: Sequence[Prompt], now: float) -> list[Action]:
        """Start on given prompts outside of training: with a ledger of their own, and nothing dropped is replaced."""
        self._batch = Batch(len(prompts), Ledger(), refill=False)
        return self._round(self._batch, prompts, now)

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
        batch = self._batch = Batch(sum(len(h.draw_indices) for h in handles), self.ledger, refill=True)
        told = f"payloads of {len(lost)} chunks are lost, and are generated and judged once more"
        actions: list[Action] = [Note("regenerate", "", told)]
        for index, handle in enumerate(handles):
            if index not in lost:
                batch.ready.append(handle)
                continue
            self.ledger.lose(len(handle.draw_indices))
            prompts = tuple(self.prompts.prompt_at(draw) for draw in handle.draw_indices)
            actions += self._send_chunk(batch, handle.chunk_index, prompts, now)
        return actions

    def finished(self) -> list[ChunkHandle] | None:
        """The batch in draw order, handed out once, when it is complete."""
        batch = self._batch
        if batch is None or batch.chunks or self.failure is not None:
            return None
        batch.ledger.check()
        self._batch = None
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
            self.failure = None  # that is what is being mended
        self.ledger.check()
        self._boundary = self._state()
        return self._take([], now)

    def abandon(self) -> None:
        """Nobody waits for the batch any more; its samples stay in flight or buffered until they are rolled back."""
        for task_id in list(self._tasks):
            self.rollout.forget(task_id)
            self.reward.forget(task_id)
        self._tasks.clear()
        self._batch = None

    # --- what happens

    def on_reply(self, reply: Reply, now: float) -> list[Action]:
        """A call is answered; unknown ones are late echoes of calls that are answered."""
        for pool in (self.rollout, self.reward):
            if pool.owns(reply):
                return self._take(pool.on_reply(reply, now), now)
        return []

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        return self._take(self.rollout.tick(now) + self.reward.tick(now), now)

    def leave_nodes(self, nodes: frozenset[str], now: float) -> list[Action]:
        """Nodes are about to go."""
        return self._take(self.rollout.leave_nodes(nodes, now) + self.reward.leave_nodes(nodes, now), now)

    # --- inside

    def _state(self) -> dict[str, Any]:
        return {**self.prompts.state_dict(), "ledger": self.ledger.as_dict()}

    def _round(self, batch: Batch, prompts: Sequence[Prompt], now: float) -> list[Action]:
        """Send prompts in fixed chunks."""
        batch.ledger.dispatch(len(prompts))
        actions: list[Action] = []
        for start in range(0, len(prompts), self.chunk_sequences):
            part = tuple(prompts[start : start + self.chunk_sequences])
            actions += self._send_chunk(batch, next(self._chunk_indices), part, now)
        return actions

    def _send_chunk(self, batch: Batch, index: int, prompts: tuple[Prompt, ...], now: float) -> list[Action]:
        request = GenerateRequest(
            chunk_index=index,
            attempt=0,
            prompts=prompts,
            fill=self.chunk_sequences - len(prompts),
            run_seed=self.run_seed,
            temperature=self.ppo.temperature,
            weights=self.current(),
        )
        chunk = batch.chunks[index] = Chunk(request)
        return self._ask(self.rollout, chunk, "generate", request, now)

    def _ask(self, pool: Pool, chunk: Chunk, method: Any, argument: Any, now: float) -> list[Action]:
        task_id = pool.submit(method, argument)
        chunk.tasks.add(task_id)
        self._tasks[task_id] = chunk
        return self._take(pool.dispatch(now), now)

    def _take(self, actions: list[Action], now: float) -> list[Action]:
        """Act on what concerns chunks; the rest is for the transport, metrics and log."""
        passed: list[Action] = []
        for action in actions:
            match action:
                case Done() | GaveUp() | LostArgument():
                    passed += [action, *self._on_outcome(action, now)]
                case Duplicate(stats):
                    self.ledger.duplicates += stats.samples
                case Failed(error):
                    self.failure = self.failure or error
                    passed.append(action)
                case _:
                    passed.append(action)
        return passed

    def _on_outcome(self, outcome: Done | GaveUp | LostArgument, now: float) -> list[Action]:
        """A task is closed; its chunk may have been given up by another outcome of the same step."""
        chunk = self._tasks.pop(outcome.task_id, None)
        if chunk is None:
            return []
        chunk.tasks.discard(outcome.task_id)
        match outcome:
            case Done():
                return self._on_done(chunk, outcome, now)
            case GaveUp():
                return self._on_gave_up(chunk, outcome, now)
            case _:
                return self._regenerate(chunk, now)

    def _on_done(self, chunk: Chunk, done: Done, now: float) -> list[Action]:
        """Keep what came, and ask for what comes next."""
        if done.method in ("score", "evaluate"):
            chunk.judgements, chunk.judge_stats = done.payload, done.stats
        elif done.method == "reference":
            chunk.reference = done.payload
        else:
            chunk.rollouts, chunk.rollout_stats = done.payload, done.stats
            assert self._batch is not None, "a chunk belongs to a batch"
            asked = self._batch.questions(with_reference=self.with_reference)
            return [a for method in asked for a in self._ask(self.reward, chunk, method, done.payload, now)]
        return [] if chunk.tasks else self._complete(chunk, now)

    def _complete(self, chunk: Chunk, now: float) -> list[Action]:
        """A chunk is judged: its samples are buffered, those without a score dropped."""
        batch = self._batch
        assert batch is not None, "a chunk belongs to a batch"
        for unscored in chunk.unscored():
            batch.drop(unscored.reason, 1, unscored.detail)
        handle = chunk.handle()
        batch.ledger.buffer(len(handle.draw_indices))
        if handle.draw_indices or not batch.refill:  # whoever gave the prompts learns why none has a score
            batch.ready.append(handle)
        del batch.chunks[handle.chunk_index]
        return self._refill(batch, now)

    def _on_gave_up(self, chunk: Chunk, gave_up: GaveUp, now: float) -> list[Action]:
        if gave_up.method == "generate":
            draws = [p.draw_index for p in chunk.request.prompts]
            self.failure = self.failure or MemberFailedError(
                f"draws {draws[0]} … {draws[-1]} could not be generated in {self.rollout.limits.max_attempts} attempts "
                f"(rollout.max_attempts): {type(gave_up.error).__name__}: {gave_up.error}"
            )
            return []
        self._forget_rest(chunk)
        batch = self._batch
        assert batch is not None, "a chunk belongs to a batch"
        role = "reference" if gave_up.method == "reference" else "reward"
        batch.drop(f"{role}_{gave_up.reason}", len(chunk.request.prompts), str(gave_up.error))
        del batch.chunks[chunk.request.chunk_index]
        return self._refill(batch, now)

    def _refill(self, batch: Batch, now: float) -> list[Action]:
        """Once a round is over: the next draws for what was dropped, unless that happens too often."""
        if batch.chunks or not batch.refill or (missing := batch.missing()) == 0:
            return []
        limit = self.ppo.max_drops_per_update
        limit = self.ppo.trajectories_per_update if limit is None else limit
        dropped = sum(batch.dropped.values())
        if dropped > limit:
            self.failure = self.failure or TooManyDropsError(
                f"{dropped} samples of this update could not be judged: {batch.dropped} (limit {limit}, "
                f"ppo.max_drops_per_update); the last one: {batch.detail or 'no detail'}"
            )
            return []
        return self._round(batch, self.prompts.take(missing), now)

    def _forget_rest(self, chunk: Chunk) -> None:
        """Nobody waits for what else was asked for a chunk."""
        for task_id in chunk.tasks:
            self.reward.forget(task_id)
            del self._tasks[task_id]
        chunk.tasks.clear()

    def _regenerate(self, chunk: Chunk, now: float) -> list[Action]:
        """The rollouts were lost with their node before they were judged: once more, with the same seeds."""
        self._forget_rest(chunk)
        chunk.regenerated += 1
        if chunk.regenerated > MAX_REGENERATED:
            self.failure = self.failure or MemberFailedError(
                f"chunk {chunk.request.chunk_index} lost its payload {chunk.regenerated} times; are nodes going away?"
            )
            return []
        chunk.request = replace(chunk.request, weights=self.current())
        return self._ask(self.rollout, chunk, "generate", chunk.request, now)
