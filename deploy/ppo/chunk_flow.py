"""Chunks on their way: each is generated, judged, and handed on or dropped.

Pure, as the conductor that owns it.

    prompts ─▶ generate ─▶ score ─────▶ ChunkHandle
       ▲                └▶ reference ─┘      │
       └── next draws for what was dropped ──┘   of a batch in rounds: each waits for the one before, so that chunks do
                                                 not depend on who was fast; of a stream as they are needed

Several batches may be on their way at once: training ahead of the learner, and held-out prompts for which it waits.
"""

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from actors.prompts import PromptStream
from common.config import RunConfig
from common.errors import MemberFailedError, TooManyDropsError
from common.pool import Pool
from common.pool_actions import Action, Counted, Done, Duplicate, Failed, GaveUp, LostArgument
from common.ppo_config import PPOConfig
from common.records import GenerateRequest, Prompt, WeightsHandle
from common.supervision import Ledger, Limits
from deploy.ppo.batch_flow import Batch, Chunk

MAX_REGENERATED = 5
"""Times that one chunk may lose its payload with a node before the run stops."""


class ChunkFlow:
    """Two pools, and the chunks on their way through them.

    Args:
        config: the run; its PPO stage must be present.
        prompts: where replacements for dropped draws come from.
        rollout: what the pool of workers is held to.
        reward: what the pool of reward replicas is held to.
        with_reference: ask the reward service for reference logprobs too.
        ledger: of the attempts before this one; told of answers that come a second time. A batch has its own.
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
        assert config.ppo is not None, "chunks are of a PPO stage"
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
        self.weights: WeightsHandle | None = None
        self._chunk_indices = itertools.count()
        self._tasks: dict[int, Chunk] = {}

    def current(self) -> WeightsHandle:
        """The published weights; raises RuntimeError if there are none yet."""
        if self.weights is None:
            raise RuntimeError("publish weights before collecting")
        return self.weights

    def abandon(self) -> None:
        """Nobody waits for any chunk any more."""
        for task_id in list(self._tasks):
            self.rollout.forget(task_id)
            self.reward.forget(task_id)
        self._tasks.clear()

    def send(self, batch: Batch, prompts: Sequence[Prompt], now: float) -> list[Action]:
        """Send prompts in chunks of whole groups, the last of which may be short."""
        batch.ledger.dispatch(len(prompts) * batch.samples_per_prompt)
        actions: list[Action] = []
        size = self.chunk_sequences // batch.samples_per_prompt
        for start in range(0, len(prompts), size):
            part = tuple(prompts[start : start + size])
            actions += self.send_chunk(batch, next(self._chunk_indices), part, now)
        return actions

    def send_chunk(self, batch: Batch, index: int, prompts: tuple[Prompt, ...], now: float) -> list[Action]:
        """Have the samples of these prompts generated, and then judged."""
        request = GenerateRequest(
            chunk_index=index,
            attempt=0,
            prompts=prompts,
            fill=self.chunk_sequences - len(prompts) * batch.samples_per_prompt if self.ppo.max_staleness == 0 else 0,
            run_seed=self.run_seed,
            temperature=self.ppo.temperature if batch.temperature is None else batch.temperature,
            weights=batch.weights or self.current(),
            samples_per_prompt=batch.samples_per_prompt,
            top_p=batch.top_p,
        )
        chunk = Chunk(request, batch)
        batch.send(chunk)
        return self._ask(self.rollout, chunk, "generate", request, now)

    def take(self, actions: list[Action], now: float) -> list[Action]:
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

    def _ask(self, pool: Pool, chunk: Chunk, method: Any, argument: Any, now: float) -> list[Action]:
        task_id = pool.submit(method, argument, now, ahead=chunk.batch.is_ahead)
        chunk.tasks.add(task_id)
        self._tasks[task_id] = chunk
        return self.take(pool.dispatch(now), now)

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
            asked = chunk.batch.questions(with_reference=self.with_reference)
            return [a for method in asked for a in self._ask(self.reward, chunk, method, done.payload, now)]
        return [] if chunk.tasks else self._complete(chunk, now)

    def _complete(self, chunk: Chunk, now: float) -> list[Action]:
        """A chunk is judged: its samples are buffered, groups in which one has no score are dropped."""
        batch = chunk.batch
        for reason, samples, detail in chunk.drops():
            batch.drop(reason, samples, detail)
        assert chunk.judge_stats is not None, "it is judged"
        counted: list[Action] = [Counted("reward", "unscored", one.reason) for one in chunk.judge_stats.unscored]
        handle = chunk.handle()
        batch.ledger.buffer(handle.num_samples)
        if handle.draw_indices or not batch.refill:  # whoever gave the prompts learns why none has a score
            batch.add(handle)
        batch.close(chunk)
        return [*counted, *self._refill(batch, now)]

    def _on_gave_up(self, chunk: Chunk, gave_up: GaveUp, now: float) -> list[Action]:
        if gave_up.method == "generate":
            draws = [p.draw_index for p in chunk.request.prompts]
            self.failure = self.failure or MemberFailedError(
                f"draws {draws[0]} … {draws[-1]} could not be generated in {self.rollout.limits.max_attempts} attempts "
                f"(rollout.max_attempts): {type(gave_up.error).__name__}: {gave_up.error}"
            )
            return []
        self._forget_rest(chunk)
        batch = chunk.batch
        reason = f"{'reference' if gave_up.method == 'reference' else 'reward'}_{gave_up.reason}"
        samples = chunk.request.num_samples
        batch.drop(reason, samples, str(gave_up.error))
        batch.close(chunk)
        return [Counted("reward", "unscored", reason, samples), *self._refill(batch, now)]

    def _refill(self, batch: Batch, now: float) -> list[Action]:
        """The next draws for what was dropped, unless that happens too often."""
        if not batch.refill:
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
        if (due := batch.due()) == 0:
            return []
        return self.send(batch, batch.draw(self.prompts, due // batch.samples_per_prompt), now)

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
        chunk.request = replace(chunk.request, weights=chunk.batch.weights or self.current())
        return self._ask(self.rollout, chunk, "generate", chunk.request, now)
