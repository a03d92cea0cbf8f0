"""The ledger holds, and no sample is trained on twice, whatever a transport does: it loses, repeats, delays, reorders.

A state machine of hypothesis plays the transport, the members, the learner and the operator.
"""

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from common.pool_actions import Kill, Send
from common.ports import Reply
from common.records import Identity, UpdateReport, WeightsHandle

CHUNK, BATCH = 8, 32
WORK = ("generate", "score", "reference")
SETTINGS = (
    "rollout.request_timeout_s=40",
    "reward_service.request_timeout_s=40",
    "reward_service.budget_s=90",
    "rollout.max_restarts=1000",
    "reward_service.max_restarts=1000",
    "rollout.max_attempts=50",
    "ppo.max_drops_per_update=100000",
    "ppo.max_nonfinite_updates=1000",
)


class World(RuleBasedStateMachine):
    """Everything around the conductor."""

    def __init__(self):
        super().__init__()
        self.conductor, self.now, self.open, self.said = None, 1000.0, {}, []
        self.step, self.lineage = 0, 0
        self.trained: list[set[int]] = []
        """Draws of each update along the ancestry of the current weights."""
        self.saved: list[tuple[int, dict]] = []
        self.running = False
        self.killed = set()

    @initialize(workers=st.integers(1, 3), replicas=st.integers(1, 3), samples=st.sampled_from([1, 2, 4]))
    def start(self, workers, replicas, samples):
        self.samples = samples
        group = f"ppo.samples_per_prompt={samples}"
        bench = MAKE(*SETTINGS, group, workers=workers, replicas=replicas, published=False)
        self.conductor, self.open = bench.conductor, bench.open
        self.saved = [(0, self.conductor.state_dict())]
        self.publish()

    def take(self, actions):
        for action in actions:
            if isinstance(action, Send):
                call = action.call
                assert call.call_id not in self.open, "an id stands for one call"
                assert call.member not in self.killed, "nothing is sent to who was killed"
                self.open[call.call_id] = call
            if isinstance(action, Kill):
                self.killed.add(action.member)

    def publish(self):
        identity = Identity(self.lineage, self.step)
        self.take(self.conductor.publish(WeightsHandle(identity, "buffer", 0, ()), self.now))

    def is_fine(self):
        return self.conductor is not None and self.conductor.failure is None

    def pick(self, data, *methods):
        calls = [c for c in self.open.values() if not methods or c.method in methods]
        return data.draw(st.sampled_from(calls)) if calls else None

    def say(self, reply):
        self.said.append(reply)
        self.take(self.conductor.on_reply(reply, self.now))

    # --- the transport and the members

    @precondition(is_fine)
    @rule(data=st.data(), unscored=st.sets(st.integers(0, 7), max_size=2))
    def a_call_is_answered(self, data, unscored):
        call = self.pick(data)
        if call is not None:
            del self.open[call.call_id]
            rows = call.argument.rollouts if call.method == "score" else ()
            self.say(ANSWER(call, {(rows[i].draw_index, rows[i].sample_index) for i in unscored if i < len(rows)}))

    @precondition(is_fine)
    @rule()
    def all_calls_are_answered_in_reverse(self):
        for call in list(self.open.values())[::-1]:
            if self.open.pop(call.call_id, None) is not None:
                self.say(ANSWER(call))

    @precondition(is_fine)
    @rule(data=st.data())
    def a_reply_comes_once_more(self, data):
        if self.said:
            self.take(self.conductor.on_reply(data.draw(st.sampled_from(self.said)), self.now))

    @precondition(is_fine)
    @rule(data=st.data())
    def a_reply_is_lost(self, data):
        call = self.pick(data)
        if call is not None:
            del self.open[call.call_id]

    @precondition(is_fine)
    @rule(data=st.data())
    def a_member_dies(self, data):
        call = self.pick(data)
        if call is not None:
            for other in [c for c in self.open.values() if c.member == call.member]:
                if self.open.pop(other.call_id, None) is not None:
                    self.say(Reply(other.call_id, error=OSError("killed"), cause="died"))

    @precondition(is_fine)
    @rule(data=st.data(), cause=st.sampled_from(["raised", "lost"]))
    def work_fails(self, data, cause):
        call = self.pick(data, *(WORK if cause == "raised" else ("score", "reference")))  # lost weights end the batch
        if call is not None:
            del self.open[call.call_id]
            self.say(Reply(call.call_id, error=ValueError("no"), cause=cause))

    @precondition(is_fine)
    @rule(seconds=st.sampled_from([0.5, 3.0, 25.0, 45.0, 95.0]))
    def time_passes(self, seconds):
        self.now += seconds
        self.take(self.conductor.tick(self.now))

    # --- the operator

    @precondition(is_fine)
    @rule(workers=st.integers(1, 4), replicas=st.integers(1, 3))
    def somebody_resizes(self, workers, replicas):
        self.take(self.conductor.resize(workers, replicas, self.now))

    @precondition(is_fine)
    @rule()
    def the_node_drains(self):
        self.take(self.conductor.leave_nodes(frozenset({"n1"}), self.now))

    # --- the loop

    @precondition(lambda self: self.is_fine() and not self.running)
    @rule()
    def the_loop_collects(self):
        self.running = True
        self.take(self.conductor.begin(BATCH, self.now))

    @precondition(lambda self: self.is_fine() and self.running)
    @rule(finite=st.booleans(), lost=st.sets(st.integers(0, 3), max_size=2))
    def the_learner_trains(self, finite, lost):
        handles = self.conductor.finished()
        if handles is None:
            return
        lost = [i for i in lost if i < len(handles)]
        if lost:
            self.take(self.conductor.begin_again(handles, lost, self.now))
            return
        self.running = False
        draws = [d for h in handles for d in h.draw_indices]
        assert len(draws) == len(set(draws)) == BATCH // self.samples
        held = [r for h in handles for r in h.rollouts.rollouts if r.draw_index in h.draw_indices]
        assert [(r.draw_index, r.sample_index) for r in held] == [(d, k) for d in draws for k in range(self.samples)]
        assert not set(draws) & set().union(*self.trained), "trained once along the ancestry"
        identities = {r.identity for h in handles for r in h.rollouts.rollouts if r.draw_index in h.draw_indices}
        assert identities == {Identity(self.lineage, self.step)}, "by the current weights"
        if finite:
            self.step += 1
            self.trained.append(set(draws))
        trained = tuple((d, k) for d in draws for k in range(self.samples)) if finite else ()
        self.conductor.account(
            UpdateReport(self.step, Identity(self.lineage, self.step), trained, {}, {}, is_finite=finite)
        )
        if finite:
            self.saved.append((self.step, self.conductor.state_dict()))
            self.publish()

    @precondition(is_fine)
    @rule(data=st.data())
    def the_learner_dies(self, data):
        step, state = data.draw(st.sampled_from(self.saved))
        self.saved = [(s, kept) for s, kept in self.saved if s <= step]
        self.step, self.lineage, self.running = step, self.lineage + 1, False
        self.trained = self.trained[:step]
        self.take(self.conductor.roll_back(state, self.now))
        self.publish()

    # --- what always holds

    @invariant()
    def the_ledger_adds_up(self):
        if self.conductor is None:
            return
        ledger = self.conductor.ledger
        ledger.check()
        assert ledger.trained == BATCH * len(self.trained)
        assert ledger.live <= ledger.trained + BATCH, "the queue has a cap"

    @invariant()
    def members_hold_no_more_than_they_may(self):
        if self.conductor is None:
            return
        for pool in (self.conductor.rollout, self.conductor.reward):
            assert all(m.load() <= pool.limits.depth for m in pool.roster.members())
            assert all(m.load() == 0 for m in pool.roster.members() if m.state in ("starting", "syncing"))

    def teardown(self):
        """Once the world is fair again, what was begun ends."""
        if self.conductor is None or not self.is_fine() or not self.running:
            return
        for _ in range(3000):
            if self.conductor.failure is not None or self.conductor.finished() is not None:
                break
            for call in list(self.open.values()):
                if self.open.pop(call.call_id, None) is not None:
                    self.say(ANSWER(call))
            self.now += 1.0
            self.take(self.conductor.tick(self.now))
        else:
            pytest.fail(f"never ends: {self.conductor.ledger}")
        self.conductor.ledger.check()


MAKE = ANSWER = None


@pytest.mark.parametrize("examples", [60])
def test_the_ledger_holds_over_any_transport(make_bench, member_answer, examples, monkeypatch):
    monkeypatch.setitem(globals(), "MAKE", make_bench)
    monkeypatch.setitem(globals(), "ANSWER", member_answer)
    case = World.TestCase()
    case.settings = settings(
        max_examples=examples,
        stateful_step_count=60,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        phases=(Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink),
    )
    case.runTest()
