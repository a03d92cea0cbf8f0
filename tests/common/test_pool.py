"""A pool of one role: calls out, replies in, and errors that say who failed at what."""

import itertools

import pytest

from common.errors import MemberFailedError, PhaseTimeoutError, WeightsMismatchError
from common.pool import DEPTH, Pool
from common.ports import Call, Reply
from common.records import Stats


def pool_of(role="rollout", members=("worker-0", "worker-1"), **changes):
    return Pool(role, members, **{"deadline_s": 30.0} | changes)


def test_calls_carry_role_member_method_and_argument():
    pool = pool_of("reward", ("replica-0",))
    score, reference = pool.submit("score", "chunk"), pool.submit("reference", "chunk")
    assert pool.due(0.0) == [
        Call(score, "reward", "replica-0", "score", "chunk"),
        Call(reference, "reward", "replica-0", "reference", "chunk"),
    ]
    assert pool.due(0.0) == [], "a call is sent once"


def test_a_member_holds_at_most_depth_calls_and_gets_the_next_when_it_answers():
    pool = pool_of()
    ids = [pool.submit("generate", i) for i in range(2 * DEPTH + 1)]
    assert [c.member for c in pool.due(0.0)] == ["worker-0", "worker-1"] * DEPTH
    assert pool.settle(Reply(ids[1], "payload", Stats())) == "worker-1"
    assert [(c.call_id, c.member) for c in pool.due(0.0)] == [(ids[-1], "worker-1")]


def test_pools_that_share_ids_know_their_own_replies():
    ids = itertools.count()
    rollout, reward = pool_of(call_ids=ids), pool_of("reward", ("replica-0",), call_ids=ids)
    a, b = rollout.submit("generate", 0), reward.submit("score", 0)
    assert a != b
    assert (rollout.owns(Reply(a)), rollout.owns(Reply(b))) == (True, False)
    assert (reward.owns(Reply(a)), reward.owns(Reply(b))) == (False, True)
    rollout.due(0.0)
    rollout.settle(Reply(a))
    assert not rollout.owns(Reply(a)), "it is closed"


@pytest.mark.parametrize(("role", "method"), [("rollout", "generate"), ("reward", "score"), ("reward", "reference")])
def test_a_failed_call_names_role_member_phase_and_cause(role, method):
    pool = pool_of(role, ("first", "second"))
    pool.submit(method, 0)
    failing = pool.submit(method, 1)
    pool.due(0.0)
    cause = OSError("disk full")
    with pytest.raises(
        MemberFailedError, match=f"{role} member second failed in {method}: OSError: disk full"
    ) as caught:
        pool.settle(Reply(failing, error=cause))
    assert caught.value.__cause__ is cause


def test_an_error_raised_on_purpose_reaches_the_user_as_it_was():
    pool = pool_of()
    call = pool.submit("generate", 0)
    pool.due(0.0)
    error = WeightsMismatchError("worker-0: published weights lack 'lm_head.weight'")
    with pytest.raises(WeightsMismatchError) as caught:
        pool.settle(Reply(call, error=error))
    assert caught.value is error


def test_a_failed_call_is_closed_and_its_member_free_again():
    pool = pool_of(members=("worker-0",))
    calls = [pool.submit("generate", i) for i in range(DEPTH + 1)]
    pool.due(0.0)
    with pytest.raises(MemberFailedError):
        pool.settle(Reply(calls[0], error=RuntimeError("boom")))
    assert not pool.owns(Reply(calls[0]))
    assert [c.call_id for c in pool.due(1.0)] == [calls[-1]]


def test_the_deadline_error_says_who_holds_what_for_how_long_and_what_else_is_open():
    pool = pool_of()
    calls = [pool.submit("generate", i) for i in range(7)]
    pool.due(100.0)
    pool.settle(Reply(calls[0]))  # worker-1 is the first one late
    pool.check_deadlines(130.0)
    with pytest.raises(PhaseTimeoutError) as caught:
        pool.check_deadlines(131.4)
    assert str(caught.value) == (
        "rollout member worker-0 has not answered generate for 31 s (limit 30 s, rollout.request_timeout_s); "
        "3 calls at 2 members, 3 queued"
    )


def test_the_deadline_error_names_the_member_that_is_late_and_no_other():
    pool = pool_of("reward", ("replica-0", "replica-1"))
    first = pool.submit("score", 0)
    pool.submit("reference", 1)
    pool.due(0.0)
    pool.settle(Reply(first))
    with pytest.raises(PhaseTimeoutError, match="reward member replica-1 has not answered reference for 40 s"):
        pool.check_deadlines(40.0)


def test_what_waits_in_the_queue_is_never_late():
    pool = pool_of()
    pool.submit("generate", 0)
    pool.check_deadlines(1e9)
