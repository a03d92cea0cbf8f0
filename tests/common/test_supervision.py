"""The pure machines under both pools: the ledger of samples, and who gets the next call."""

import copy
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from common.errors import LedgerError
from common.supervision import Assignment, Dispatcher, Late, Ledger


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
        dropped = self.move(samples, "in_flight", f"dropped {reason}")
        self.ledger.in_flight -= dropped
        self.ledger.dropped[reason] = self.ledger.dropped.get(reason, 0) + dropped

    @rule(samples=st.integers(0, 3))
    def roll_back(self, samples):
        lost = self.move(samples, "buffered", "rolled_back")
        self.ledger.buffered -= lost
        self.ledger.rolled_back += lost

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


def test_a_sample_cannot_be_trained_on_twice():
    # Trap 26, as far as counting sees it.
    ledger = Ledger()
    ledger.dispatch(2)
    ledger.buffer(2)
    ledger.train(2)
    ledger.check()
    ledger.train(1)
    with pytest.raises(LedgerError, match="trained=3"):
        ledger.check()


def test_the_ledger_as_a_dictionary_is_a_copy():
    ledger = Ledger(dropped={"timeout": 1})
    ledger.as_dict()["dropped"]["timeout"] = 5
    assert ledger.dropped == {"timeout": 1}


def dispatcher(members=("a", "b", "c"), depth=2, deadline_s=10.0):
    return Dispatcher(members, depth=depth, deadline_s=deadline_s)


def test_tasks_go_to_the_least_loaded_member_and_ties_to_the_earlier_one():
    pool = dispatcher()
    for task in range(4):
        pool.submit(task)
    assert pool.assign(0.0) == [Assignment(m, t) for t, m in enumerate("abca")]
    pool.finish(1)
    pool.submit(4)
    pool.submit(5)
    assert pool.assign(0.0) == [Assignment("b", 4), Assignment("b", 5)]


def test_no_member_holds_more_than_its_depth_and_the_rest_waits_in_order():
    pool = dispatcher(("a", "b"), depth=2)
    for task in range(7):
        pool.submit(task)
    assert len(pool.assign(0.0)) == 4
    assert pool.assign(1.0) == []
    assert list(pool.queue) == [4, 5, 6]
    assert pool.finish(1) == "b"
    assert pool.assign(2.0) == [Assignment("b", 4)]
    assert pool.num_held() == 4


def test_a_result_that_nobody_holds_is_nobodys():
    pool = dispatcher()
    pool.submit("x")
    assert pool.finish("x") is None, "it waits in the queue and was given to nobody"
    pool.assign(0.0)
    assert pool.finish("x") == "a"
    assert pool.finish("x") is None


def test_a_task_is_late_once_it_was_held_for_longer_than_the_deadline():
    pool = dispatcher(depth=1, deadline_s=10.0)
    pool.submit("early")
    pool.assign(100.0)
    pool.submit("later")
    pool.assign(105.0)
    assert pool.late(110.0) == []
    assert pool.late(110.5) == [Late("a", "early", 10.5)]
    assert pool.late(116.0) == [Late("a", "early", 16.0), Late("b", "later", 11.0)]
    pool.finish("early")
    assert pool.late(116.0) == [Late("b", "later", 11.0)]


def test_time_in_the_queue_does_not_count_against_the_deadline():
    pool = dispatcher(("a",), depth=1, deadline_s=10.0)
    pool.submit("first")
    pool.submit("second")
    pool.assign(0.0)
    pool.finish("first")
    pool.assign(9.0)
    assert pool.late(18.0) == []
    assert [late.task for late in pool.late(20.0)] == ["second"]


def test_a_pool_without_members_is_an_error():
    with pytest.raises(ValueError, match="at least one member"):
        dispatcher(())


@given(
    num_members=st.integers(1, 4),
    depth=st.integers(1, 3),
    moves=st.lists(st.one_of(st.just("submit"), st.just("assign"), st.integers(0, 30)), max_size=80),
)
def test_every_task_is_given_once_in_order_and_loads_stay_balanced(num_members, depth, moves):
    pool = dispatcher([f"m{i}" for i in range(num_members)], depth, 10.0)
    submitted, given_out, open_tasks = 0, [], {}
    for move in moves:
        if move == "submit":
            pool.submit(submitted)
            submitted += 1
        elif move == "assign":
            for one in pool.assign(0.0):
                loads = Counter(open_tasks.values())
                assert loads[one.member] == min(loads[m] for m in pool.members) < depth
                given_out.append(one.task)
                open_tasks[one.task] = one.member
            assert not pool.queue or len(open_tasks) == num_members * depth
        else:
            assert pool.finish(move) == open_tasks.pop(move, None)
    assert given_out == list(range(len(given_out)))
    assert len(given_out) + len(pool.queue) == submitted
    assert pool.num_held() == len(open_tasks)
