"""The arithmetic under both pools: the ledger of samples, restart budgets, and limits from a configuration."""

import copy
import json
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from common.errors import LedgerError
from common.placement_config import RolloutConfig
from common.supervision import MAX_BACKOFF_S, Ledger, Limits, RestartBudget


class LedgerOfSamples(RuleBasedStateMachine):
    """Every sample by itself, beside the ledger that only counts."""

    def __init__(self):
        super().__init__()
        self.ledger = Ledger()
        self.fates: list[str] = []

    def move(self, count, before, after):
        indices = [i for i, fate in enumerate(self.fates) if fate == before][:count]
        for i in indices:
            self.fates[i] = after
        return len(indices)

    @rule(samples=st.integers(0, 9))
    def dispatch(self, samples):
        self.fates += ["in_flight"] * samples
        self.ledger.dispatch(samples)

    @rule(samples=st.integers(0, 9))
    def come_back_judged(self, samples):
        self.ledger.buffer(self.move(samples, "in_flight", "buffered"))

    @rule(samples=st.integers(0, 9))
    def train(self, samples):
        self.ledger.train(self.move(samples, "buffered", "trained"))

    @rule(samples=st.integers(0, 3), reason=st.sampled_from(["timeout", "scorer"]))
    def drop(self, samples, reason):
        self.ledger.drop(reason, self.move(samples, "in_flight", f"dropped {reason}"))

    @rule(samples=st.integers(0, 3))
    def drop_what_was_judged(self, samples):
        self.ledger.drop("nonfinite", self.move(samples, "buffered", "dropped nonfinite"), buffered=True)

    @rule(samples=st.integers(0, 3))
    def lose_with_a_node(self, samples):
        self.ledger.lose(self.move(samples, "buffered", "in_flight"))

    @rule(keep=st.integers(0, 9))
    def roll_back(self, keep):
        trained = self.fates.count("trained")
        kept = min(keep, trained)
        self.move(len(self.fates), "buffered", "rolled_back")
        self.move(len(self.fates), "in_flight", "rolled_back")
        self.move(trained - kept, "trained", "rolled_back")
        self.ledger.roll_back(kept)

    @rule()
    def be_saved_and_read_back(self):
        self.ledger = Ledger.of(json.loads(json.dumps(self.ledger.as_dict())))

    @rule()
    def answer_twice(self):
        self.ledger.duplicates += 1

    @precondition(lambda self: self.fates)
    @rule(
        field=st.sampled_from(["dispatched", "trained", "rolled_back", "buffered", "in_flight"]),
        by=st.sampled_from([-1, 1]),
    )
    def a_sample_lost_or_counted_twice_is_found(self, field, by):
        wrong = copy.deepcopy(self.ledger)
        setattr(wrong, field, getattr(wrong, field) + by)
        with pytest.raises(LedgerError):
            wrong.check()

    @invariant()
    def every_sample_is_where_the_ledger_says(self):
        self.ledger.check()
        counts = Counter(self.fates)
        booked = self.ledger.as_dict()
        assert self.ledger.live == counts["trained"] + counts["buffered"] + counts["in_flight"]
        assert booked["dispatched"] == len(self.fates)
        for fate in ("trained", "rolled_back", "buffered", "in_flight"):
            assert booked[fate] == counts[fate]
        for reason, number in booked["dropped"].items():
            assert number == counts[f"dropped {reason}"]


TestLedgerOfSamples = LedgerOfSamples.TestCase


def test_a_sample_that_was_never_dispatched_cannot_come_back():
    ledger = Ledger()
    ledger.dispatch(2)
    ledger.buffer(3)
    with pytest.raises(LedgerError, match="in_flight=-1"):
        ledger.check()


def test_a_saved_ledger_that_does_not_add_up_is_refused():
    ledger = Ledger()
    ledger.dispatch(3)
    with pytest.raises(LedgerError, match="dispatched=4"):
        Ledger.of({**ledger.as_dict(), "dispatched": 4})


def test_the_first_restart_is_at_once_and_each_later_one_waits_twice_as_long():
    budget = RestartBudget(8, 1000.0)
    assert [budget.take(float(i)) for i in range(8)] == [0, 1, 2, 4, 8, 16, MAX_BACKOFF_S, MAX_BACKOFF_S]
    assert budget.take(9.0) is None


def test_restarts_that_are_long_ago_cost_nothing():
    budget = RestartBudget(2, 100.0)
    assert [budget.take(0.0), budget.take(50.0), budget.take(99.0)] == [0, 1, None]
    assert budget.take(100.5) == 1, "the first one has left the window"
    assert budget.take(300.0) == 0
    assert budget.total == 4


@given(st.lists(st.floats(0, 50), max_size=60), st.integers(0, 5), st.floats(1, 100))
def test_no_window_ever_holds_more_restarts_than_allowed(gaps, most, window):
    budget, now, taken = RestartBudget(most, window), 0.0, []
    for gap in gaps:
        now += gap
        if budget.take(now) is not None:
            taken.append(now)
    for at in taken:
        assert sum(0 <= at - other <= window for other in taken) <= most


def test_what_is_no_process_has_no_deadlines_but_keeps_its_budgets():
    config = RolloutConfig(request_timeout_s=7, max_attempts=2)
    processes = Limits.of(config, min_members=2)
    objects = Limits.of(config, min_members=2, are_processes=False)
    assert (processes.request_s, processes.heartbeat_s) == (7, config.heartbeat_timeout_s)
    assert {objects.start_s, objects.sync_s, objects.request_s, objects.drain_s, objects.heartbeat_s} == {math.inf}
    assert (objects.max_attempts, objects.max_restarts, objects.min_members) == (2, config.max_restarts, 2)
