"""Who waits for whom: arithmetic on what members and the loop say."""

import math
from dataclasses import replace

import pytest

from common.pool_actions import Done
from common.records import Identity, Stats, UpdateReport
from deploy.ppo.pulse import PUBLISHED_KEPT, Pulse


def worked(slot, seconds, tokens=0):
    role, method = ("rollout", "generate") if slot.startswith("worker") else ("reward", "score")
    return Done(1, method, role, slot, None, Stats(response_tokens=tokens, seconds=seconds))


def report(**metrics):
    return UpdateReport(4, Identity(0, 4), (), metrics, {})


@pytest.fixture
def pulse():
    pulse = Pulse()
    pulse.looked({"rollout": ["worker-0", "worker-1"], "reward": ["replica-0"]}, {})
    return pulse


def test_nothing_is_known_before_the_first_update(pulse):
    assert pulse.cycle is None
    assert pulse.tokens_per_s("worker-0") is None
    assert pulse.weights_lag(Identity(0, 0)) is None


def test_shares_are_of_the_time_from_update_to_update_without_pauses(pulse):
    for _ in range(2):
        pulse.answered(worked("worker-0", {"fetch": 0.5, "generate": 2.0}, tokens=100))
    pulse.answered(worked("replica-0", {"score": 1.0}))
    seconds = {"collect": 6.0, "update": 2.0, "publish": 0.5, "generate": 4.0, "paused": 90.0, "total": 100.0}
    cycle = pulse.updated(report(response_tokens=250.0, score_mean=1.5, explained_variance=math.nan), seconds)
    assert cycle is pulse.cycle
    assert cycle.update_s == 10
    assert cycle.tokens_per_s == 25
    assert cycle.learner_wait == 0.6
    assert cycle.busy_of_slot == {"worker-0": 0.5, "worker-1": 0.0, "replica-0": 0.1}
    assert cycle.busy == {"rollout": 0.25, "reward": 0.1, "learner": 0.25}
    assert cycle.metrics == {"response_tokens": 250.0, "score_mean": 1.5}, "what is not finite is no JSON"
    assert pulse.tokens_per_s("worker-0") == 50


def test_evaluations_and_the_mean_wait_for_a_replica_are_of_the_update(pulse):
    for method, queued_s in (("score", 0.5), ("score", 2.0), ("score", 1.0), ("evaluate", 9.0), ("generate", 8.0)):
        pulse.answered(replace(worked("replica-0", {"score": 1.0}), method=method, queued_s=queued_s))
    cycle = pulse.updated(report(), {"collect": 6.0, "evaluate": 2.5, "total": 10.0})
    assert (cycle.evaluate, cycle.score_queued_s) == (0.25, pytest.approx(3.5 / 3)), "chunks for training only"
    again = pulse.updated(report(), {"collect": 6.0, "total": 10.0})
    assert (again.evaluate, again.score_queued_s) == (0.0, 0.0)


def test_who_takes_a_slot_has_not_the_speed_of_the_one_before(pulse):
    for slot in ("worker-0", "worker-1"):
        pulse.answered(worked(slot, {"generate": 2.0}, tokens=100))
    pulse.began("worker-0")
    assert pulse.tokens_per_s("worker-0") is None
    assert pulse.tokens_per_s("worker-1") == 50


def test_work_counts_in_one_update(pulse):
    pulse.answered(worked("worker-0", {"generate": 1.0}))
    assert pulse.updated(report(), {"total": 2.0}).busy_of_slot["worker-0"] == 0.5
    assert pulse.updated(report(), {"total": 2.0}).busy_of_slot["worker-0"] == 0


def test_a_call_that_began_in_an_earlier_update_makes_nobody_busier_than_always(pulse):
    pulse.answered(worked("worker-0", {"generate": 9.0}))
    assert pulse.updated(report(), {"total": 2.0}).busy_of_slot["worker-0"] == 1


def test_a_call_that_lasts_longer_than_an_update_counts_in_each_as_long_as_it_went_on(pulse):
    members = {"rollout": ["worker-0", "worker-1"], "reward": ["replica-0"]}
    shares = []
    for working_s in (1.0, 3.0, 5.0):
        pulse.looked(members, {"worker-0": working_s, "worker-1": 0.0})
        shares.append(pulse.updated(report(), {"total": 2.0}).busy_of_slot["worker-0"])
    pulse.answered(worked("worker-0", {"generate": 5.5}))
    pulse.looked(members, {"worker-0": 0.25, "worker-1": 0.0})
    shares.append(pulse.updated(report(), {"total": 2.0}).busy_of_slot["worker-0"])
    assert shares == [0.5, 1.0, 1.0, 0.375], "the last half second, and a quarter of the next call"


def test_work_of_who_was_lost_counts_in_nothing_that_comes_after(pulse):
    pulse.looked({"rollout": ["worker-0"]}, {"worker-0": 2.0})
    pulse.updated(report(), {"total": 2.0})
    pulse.began("worker-0")
    pulse.answered(worked("worker-0", {"generate": 1.0}))
    assert pulse.updated(report(), {"total": 2.0}).busy_of_slot["worker-0"] == 0.5


def test_who_has_gone_counts_in_no_mean_and_who_comes_under_its_name_begins_anew(pulse):
    pulse.answered(worked("worker-1", {"generate": 2.0}, tokens=8))
    pulse.departed("worker-1")
    pulse.looked({"rollout": ["worker-0"], "reward": []}, {})
    cycle = pulse.updated(report(), {"total": 2.0})
    assert cycle.busy == {"rollout": 0.0, "learner": 0.0}
    assert pulse.tokens_per_s("worker-1") is None


def test_weights_age_from_when_they_were_published_last(pulse):
    pulse.published(Identity(0, 1), 100.0)
    pulse.published(Identity(0, 3), 110.0)
    assert pulse.weights_age_s(Identity(0, 1), 112.0) == 12
    assert pulse.weights_lag(Identity(0, 1)) == 2
    assert pulse.weights_age_s(Identity(1, 1), 112.0) is None
    pulse.published(Identity(0, 1), 120.0)
    assert pulse.weights_age_s(Identity(0, 1), 121.0) == 1
    assert pulse.weights_lag(Identity(0, 3)) == 0, "a learner that went back: nobody is ahead"


def test_times_of_publishing_are_forgotten_at_last(pulse):
    for step in range(PUBLISHED_KEPT + 1):
        pulse.published(Identity(0, step), float(step))
    assert pulse.weights_age_s(Identity(0, 0), 100.0) is None
    assert pulse.weights_age_s(Identity(0, 1), 100.0) == 99
