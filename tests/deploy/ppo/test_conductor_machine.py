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

BATCH = 32
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
    "ppo.updates=1000",
)


class World(RuleBasedStateMachine):
    """Everything around the conductor."""

    def __init__(self):
        super().__init__()
        self.conductor, self.now, self.open, self.said = None, 1000.0, {}, []
        self.step, self.lineage = 0, 0
        self.trained: list[set[int]] = []
        """Draws of each update along the ancestry of the current weights."""
        self.saved: list[tuple[int, dict, int]] = []
        """Checkpoints: update, state, and draws that were given up before."""
        self.running = self.evaluating = False
        self.killed = set()
        self.given_up = self.dropped = 0
        """Samples that the ancestry of the weights did without: dropped, or left behind by a guard rail. And those that
        the ledger counted as dropped when this was added up."""

    @initialize(
        workers=st.integers(1, 3),
        replicas=st.integers(1, 3),
        samples=st.sampled_from([1, 2, 4]),
        staleness=st.integers(0, 3),
        chunk=st.sampled_from([8, 12, 48]),
    )
    def start(self, workers, replicas, samples, staleness, chunk):
        self.samples, self.staleness = samples, staleness
        shape = (f"ppo.samples_per_prompt={samples}", f"ppo.max_staleness={staleness}",
                 f"rollout.chunk_sequences={chunk}")  # fmt: skip
        bench = MAKE(*SETTINGS, *shape, workers=workers, replicas=replicas, published=False)
        self.conductor, self.open = bench.conductor, bench.open
        self.saved = [(0, self.conductor.state_dict(), 0)]
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

    @precondition(lambda self: self.is_fine() and not self.running and not self.evaluating)
    @rule()
    def the_loop_collects(self):
        self.running = True
        self.take(self.conductor.begin(BATCH, self.now))

    @precondition(lambda self: self.is_fine() and not self.evaluating)
    @rule(order=st.permutations(range(6)))
    def all_goes_well_for_an_update(self, order):
        """Members answer, some before others, until the learner has trained: so that later updates are reached too."""
        if not self.running:
            self.the_loop_collects()
        for _ in range(1000):
            if self.conductor.failure is not None:
                return
            if (handles := self.conductor.finished()) is not None:
                self.train(handles, finite=True)
                return
            calls = list(self.open.values())
            for call in [calls[i] for i in order if i < len(calls)]:
                if self.open.pop(call.call_id, None) is not None:
                    self.say(ANSWER(call))
            self.now += 1.0
            self.take(self.conductor.tick(self.now))
        pytest.fail(f"never ends: {self.conductor.ledger}")

    @precondition(lambda self: self.is_fine() and not self.running and not self.evaluating)
    @rule(before=st.booleans())
    def the_loop_evaluates(self, before):
        self.evaluating = True
        self.asked_by = WeightsHandle(Identity(-1, 0), "before", 0, ()) if before else None
        prompts = [self.conductor.prompts.prompt_at(10_000 + i) for i in range(11)]
        self.take(self.conductor.begin_given(prompts, self.now, weights=self.asked_by))

    @precondition(lambda self: self.is_fine() and self.evaluating)
    @rule()
    def held_out_prompts_are_answered(self):
        handles = self.conductor.finished()
        if handles is None:
            return
        self.evaluating = False
        wanted = Identity(self.lineage, self.step) if self.asked_by is None else self.asked_by.identity
        assert {r.identity for h in handles for r in h.rollouts.rollouts} <= {wanted}
        assert all(draw >= 10_000 for h in handles for draw in h.draw_indices)

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
        self.train(handles, finite=finite)

    def train(self, handles, *, finite):
        self.running = False
        draws = [d for h in handles for d in h.draw_indices]
        assert len(draws) == len(set(draws)) == BATCH // self.samples
        held = [r for h in handles for r in h.rollouts.rollouts if r.draw_index in h.draw_indices]
        assert sorted((r.draw_index, r.sample_index) for r in held) == [
            (d, k) for d in sorted(draws) for k in range(self.samples)
        ]
        assert not set(draws) & set().union(*self.trained), "trained once along the ancestry"
        for identity in {r.identity for r in held}:
            assert identity.lineage == self.lineage, "by weights that live"
            assert identity.step == self.step if self.staleness == 0 else identity.step <= self.step
        if finite:
            self.step += 1
            self.trained.append(set(draws))
        trained = tuple((d, k) for d in draws for k in range(self.samples)) if finite else ()
        self.conductor.account(
            UpdateReport(self.step, Identity(self.lineage, self.step), trained, {}, {}, is_finite=finite)
        )
        self.count_given_up()
        self.check_that_nothing_is_lost()
        if finite:
            self.saved.append((self.step, self.conductor.state_dict(), self.given_up))
            self.publish()

    @precondition(is_fine)
    @rule(data=st.data())
    def the_learner_dies(self, data):
        step, state, given_up = data.draw(st.sampled_from(self.saved))
        self.go_back(step, state)
        self.given_up = given_up

    @precondition(is_fine)
    @rule(data=st.data())
    def a_guard_rail_goes_back(self, data):
        step, state, _ = data.draw(st.sampled_from(self.saved))
        cursor = self.conductor.state_dict()["next_draw_index"]
        self.go_back(step, {"ledger": state["ledger"], "next_draw_index": cursor})
        self.given_up = cursor * self.samples - BATCH * step

    def go_back(self, step, state):
        self.saved = [one for one in self.saved if one[0] <= step]
        self.step, self.lineage, self.running, self.evaluating = step, self.lineage + 1, False, False
        self.trained = self.trained[:step]
        self.take(self.conductor.roll_back(state, self.now))
        self.dropped = sum(self.conductor.ledger.dropped.values())
        self.publish()

    def count_given_up(self):
        dropped = sum(self.conductor.ledger.dropped.values())
        self.given_up += dropped - self.dropped
        self.dropped = dropped

    def check_that_nothing_is_lost(self):
        """Between two updates every draw so far is trained, given up, or still to come from where a checkpoint says."""
        state = self.conductor.state_dict()
        to_come = state.get("undelivered", [])
        assert len(set(to_come)) == len(to_come)
        assert not set(to_come) & set().union(*self.trained)
        assert all(draw < state["next_draw_index"] for draw in to_come)
        accounted = BATCH * len(self.trained) + self.given_up + self.samples * len(to_come)
        assert state["next_draw_index"] * self.samples == accounted

    # --- what always holds

    @invariant()
    def the_ledger_adds_up(self):
        if self.conductor is None:
            return
        ledger = self.conductor.ledger
        ledger.check()
        assert ledger.trained == BATCH * len(self.trained)
        assert ledger.live <= (self.step + self.staleness + 1) * BATCH, "the queue has a cap"

    @invariant()
    def members_hold_no_more_than_they_may(self):
        if self.conductor is None:
            return
        for pool in (self.conductor.rollout, self.conductor.reward):
            assert all(m.load() <= pool.limits.depth for m in pool.roster.members())
            assert all(m.load() == 0 for m in pool.roster.members() if m.state in ("starting", "syncing"))

    def teardown(self):
        """Once the world is fair again, what was begun ends."""
        if self.conductor is None or not self.is_fine() or not (self.running or self.evaluating):
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


@pytest.mark.parametrize("examples", [100])
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
