"""The same schedule with a control plane that costs nothing: the real conductor and pools in simulated time.

A reply is acted on in the moment in which it comes, and a call arrives in the moment in which it is sent. What is lost
here is lost by the schedule itself: by admission, which lets nobody generate for an update too far ahead, and by tasks
that wait for a member. What a real run loses beyond it, the control plane costs.
"""

import heapq
import itertools
from collections.abc import Callable, Sequence
from typing import Any

from common.config import RunConfig
from common.pool_actions import Action, Send
from common.ports import Call, MemberKey, Reply
from common.records import Identity, Stats, UpdateReport, WeightsHandle
from common.supervision import Ledger, Limits
from deploy.bench.latency import Latency, Worked, samples_of
from deploy.bench.random_prompts import prompts_of
from deploy.ppo.chunk_flow import ChunkFlow
from deploy.ppo.conductor import Conductor


class FreeControl:
    """One run in simulated time.

    Args:
        config: of the run.
        latency: of its members.
        update_s: that the learner takes.
    """

    def __init__(self, config: RunConfig, latency: Latency, *, update_s: float) -> None:
        assert config.ppo is not None, "it is a PPO run"
        self.now = 0.0
        self.step = 0
        self.worked: list[Worked] = []
        self._config = config
        self._ppo = config.ppo
        self._latency = latency
        self._update_s = update_s
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._free_at: dict[MemberKey, float] = {}
        self._conductor = Conductor(
            ChunkFlow(
                config,
                prompts=prompts_of(config),
                rollout=Limits.of(config.rollout, min_members=1, are_processes=False),
                reward=Limits.of(config.reward_service, min_members=1, are_processes=False),
                with_reference=config.ppo.reference == "service",
                ledger=Ledger(),
            )
        )

    def run(self, until_s: float) -> Sequence[Worked]:
        """What workers were at until then."""
        config = self._config
        self._take(self._conductor.resize(config.rollout.workers, config.reward_service.replicas, self.now))
        self._begin_update()
        while self._events and self._events[0][0] < until_s:
            self.now, _, event = heapq.heappop(self._events)
            event()
        return self.worked

    def _begin_update(self) -> None:
        weights = WeightsHandle(Identity(0, self.step), None, 0, ())
        self._take(self._conductor.publish(weights, self.now))
        self._take(self._conductor.begin(self._ppo.trajectories_per_update, self.now))

    def _train(self, trained: tuple[tuple[int, int], ...]) -> None:
        self.step += 1
        self._conductor.account(UpdateReport(self.step, Identity(0, self.step), trained, {}, {}))
        self._begin_update()

    def _take(self, actions: Sequence[Action]) -> None:
        for action in actions:
            if isinstance(action, Send):
                self._carry_out(action.call)
        if (handles := self._conductor.finished()) is not None:
            trained = samples_of(handles)
            self._at(self.now + self._update_s, lambda: self._train(trained))

    def _carry_out(self, call: Call) -> None:
        payload: Any = None
        stats, took_s = None, 0.0
        match call.method:
            case "generate":
                took_s = self._latency.generate_s(call.argument.chunk_index)
                stats = Stats(samples=call.argument.num_samples, identity=call.argument.weights.identity)
            case "score" | "reference":
                took_s, stats = self._latency.judge_s, Stats(samples=self._config.rollout.chunk_sequences)
            case "adopt":
                payload = {"identity": str(call.argument.identity)}
            case "probe":
                payload = {"simulated": 0.0}
            case _:
                payload = {}
        start_s = max(self.now, self._free_at.get(call.member, 0.0))
        if call.method == "generate":
            self.worked.append(Worked(start_s, took_s))
        if stats is not None:
            self._free_at[call.member] = start_s + took_s
        reply = Reply(call.call_id, payload, stats)
        self._at(start_s + took_s, lambda: self._take(self._conductor.on_reply(reply, self.now)))

    def _at(self, time_s: float, event: Callable[[], None]) -> None:
        heapq.heappush(self._events, (time_s, next(self._order), event))
