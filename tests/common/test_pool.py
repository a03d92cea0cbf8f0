"""A pool whose members start, fall in step, fail, hang, die, drain and come back, told by hand."""

import itertools

import numpy as np
import pytest

from common.errors import ConfigError, DataError, LearnerLostError, MemberFailedError, WeightsMismatchError
from common.pool import Pool
from common.pool_actions import (
    Counted,
    Departed,
    Done,
    Duplicate,
    Failed,
    GaveUp,
    Kill,
    LostArgument,
    Note,
    Send,
    Start,
)
from common.ports import Reply
from common.records import GenerateRequest, Identity, Stats, Unscored, WeightsHandle
from common.supervision import Limits

WEIGHTS = WeightsHandle(Identity(0, 3), "buffer", 0, ())
PROBE = {"reward_model": 0.25}


class Bench:
    """A pool on a bench: remembers what it asked for, and answers for its members."""

    def __init__(self, role="rollout", members=2, *, ready=True, **limits):
        self.now = 0.0
        self.log = []
        self.open = {}
        self.pool = Pool(role, Limits(**limits))
        self.take(self.pool.publish(WEIGHTS, self.now))
        self.take(self.pool.resize(members, self.now))
        if ready:
            self.make_ready()

    def take(self, actions):
        self.log += actions
        for action in actions:
            if isinstance(action, Send):
                self.open[action.call.call_id] = action.call
        return actions

    def kinds(self, *kinds):
        return [action for action in self.log if isinstance(action, kinds)]

    def notes(self):
        return [note.text for note in self.kinds(Note)]

    def calls(self, method=None, slot=None):
        return [
            call for call in self.open.values() if method in (None, call.method) and slot in (None, call.member.slot)
        ]

    def answer(self, call, payload="payload", **fields):
        self.open.pop(call.call_id, None)
        stats = Stats(samples=8) if call.method in ("generate", "score", "reference") else None
        reply = Reply(call.call_id, payload, stats, **fields)
        if "error" in fields:
            reply = Reply(call.call_id, **fields)
        return self.take(self.pool.on_reply(reply, self.now))

    def make_ready(self, node="n1"):
        for call in self.calls("ready"):
            self.answer(call, {"node": node, "pid": 1})
        for call in self.calls("adopt"):
            self.answer(call, {"identity": "0.3"})
        for call in self.calls("probe"):
            self.answer(call, PROBE)

    def submit(self, *arguments, method="generate"):
        ids = [self.pool.submit(method, argument, self.now) for argument in arguments]
        self.take(self.pool.dispatch(self.now))
        return ids

    def die(self, slot, error=None):
        """Ray answers every open call of a dead process with an error."""
        for call in [c for c in self.open.values() if c.member.slot == slot]:
            self.answer(call, error=error or OSError(f"{slot} was killed"), cause="died")

    def pass_time(self, seconds, step=1.0):
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + step)
            for call in [c for c in self.open.values() if c.method == "heartbeat"]:
                self.answer(call, {"rss_bytes": 5})
            self.take(self.pool.tick(self.now))

    def states(self):
        return {slot.name: slot.member.state if slot.member else None for slot in self.pool.roster.slots.values()}


# --- beginnings


def test_a_worker_holds_the_weights_before_its_first_prompt():
    bench = Bench(members=1, ready=False)
    bench.submit("prompts")
    assert bench.states() == {"worker-0": "starting"}
    bench.answer(*bench.calls("ready"), {"node": "n1", "pid": 1})
    assert [c.argument for c in bench.calls("adopt")] == [WEIGHTS]
    assert not bench.calls("generate")
    bench.answer(*bench.calls("adopt"), {"identity": "0.3"})
    assert [c.argument for c in bench.calls("generate")] == ["prompts"]


def test_a_worker_that_is_ready_before_the_first_publish_waits_for_it_without_a_deadline():
    bench = Bench(members=1, ready=False)
    bench.pool.roster._weights = None
    bench.answer(*bench.calls("ready"), {"node": "n1"})
    bench.pass_time(1000)
    assert bench.states() == {"worker-0": "syncing"}
    bench.take(bench.pool.publish(WEIGHTS, bench.now))
    bench.answer(*bench.calls("adopt"), {"identity": "0.3"})
    assert bench.states() == {"worker-0": "active"}


def test_a_restarted_replica_must_score_the_probe_text_as_the_first_one_did():
    bench = Bench("reward", members=1)
    bench.submit("chunk", method="score")
    bench.die("replica-0")
    bench.answer(*bench.calls("ready"), {"node": "n1"})
    bench.answer(*bench.calls("probe"), {"reward_model": 0.26})
    assert "scores the probe text 0.26 by reward_model, the first replica 0.25" in bench.notes()[-1]
    assert bench.states() == {"replica-0": None}, "it got no work"
    bench.pass_time(40)
    bench.answer(*bench.calls("ready"), {"node": "n1"})
    bench.answer(*bench.calls("probe"), {"reward_model": 0.25 + 1e-7})
    assert bench.states() == {"replica-0": "active"}


def test_a_start_that_takes_too_long_is_a_restart():
    bench = Bench(members=1, ready=False, start_s=30.0)
    bench.pass_time(31)
    assert "not ready within 30 s (start_timeout_s)" in bench.notes()[-1]
    assert [start.member.incarnation for start in bench.kinds(Start)] == [0, 1]
    assert len(bench.kinds(Kill)) == 1


def test_a_wrong_configuration_is_no_reason_to_try_again():
    bench = Bench(members=1, ready=False)
    error = ConfigError("prompts do not fit the model")
    bench.answer(*bench.calls("ready"), error=error)
    assert [failed.error for failed in bench.kinds(Failed)] == [error]


# --- work


def test_work_goes_to_the_least_loaded_and_waits_where_all_are_full():
    bench = Bench(members=2)
    bench.submit(*range(7))
    assert [c.member.slot for c in bench.calls("generate")] == ["worker-0", "worker-1"] * 2
    first = bench.calls("generate", "worker-1")[0]
    bench.answer(first)
    assert [c.argument for c in bench.calls("generate", "worker-1")] == [3, 4]


def test_a_second_call_is_held_back_where_another_member_may_be_done_first():
    bench = Bench(members=3)
    bench.submit(*range(5))
    assert sorted(c.argument for c in bench.calls("generate")) == [0, 1, 2], "two wait, and three may want them"
    bench.answer(*bench.calls("generate", "worker-2"))
    assert [c.argument for c in bench.calls("generate", "worker-2")] == [3]
    bench.answer(*bench.calls("generate", "worker-2"))
    assert [c.argument for c in bench.calls("generate", "worker-2")] == [4]


def test_what_holds_all_that_there_is_gets_it_at_once():
    bench = Bench(members=2, depth=1 << 30, binds_early=True)
    bench.submit(*range(5))
    assert [c.argument for c in bench.calls("generate")] == [0, 1, 2, 3, 4]
    assert [c.member.slot for c in bench.calls("generate")] == [
        "worker-0",
        "worker-1",
        "worker-0",
        "worker-1",
        "worker-0",
    ]


def test_a_member_of_its_own_has_its_next_call_before_it_is_done():
    bench = Bench(members=1)
    bench.submit(*range(3))
    assert [c.argument for c in bench.calls("generate")] == [0, 1]


def test_an_answer_brings_payload_stats_and_who_gave_it():
    bench = Bench(members=1)
    (task,) = bench.submit("prompts")
    bench.answer(*bench.calls("generate"), payload="rollouts")
    (done,) = bench.kinds(Done)
    assert (done.task_id, done.method, done.role, done.slot, done.payload, done.stats.samples) == (
        task, "generate", "rollout", "worker-0", "rollouts", 8,
    )  # fmt: skip


def test_the_work_of_a_dead_member_goes_to_others_at_once_before_what_waits():
    bench = Bench(members=2)
    request = GenerateRequest(0, 0, (), 0, 1, 1.0, WEIGHTS)
    bench.submit(request, "b", "c", "d", "waiting")
    bench.die("worker-0")
    held = {c.argument if isinstance(c.argument, str) else "request" for c in bench.calls("generate")}
    assert held == {"b", "d"}, "worker-1 is full, worker-0 starts"
    for call in bench.calls("generate", "worker-1"):
        bench.answer(call)
    again = [c.argument for c in bench.calls("generate", "worker-1")]
    assert again[1] == "c"
    assert (again[0].attempt, again[0].run_seed) == (1, 1), "the same request, and how often it was sent before"


def test_a_dead_member_is_replaced_under_its_name_as_another_life():
    bench = Bench(members=2)
    bench.die("worker-1")
    assert bench.kinds(Kill) == []  # it held nothing: nobody has noticed
    bench.pass_time(3)
    bench.submit("a", "b")
    bench.die("worker-1", OSError("signal 9"))
    assert bench.kinds(Start)[-1].member == ("rollout", "worker-1", 1)
    assert "rollout member worker-1 was lost in generate: OSError: signal 9" in bench.notes()[-1]
    bench.make_ready()
    assert bench.states() == {"worker-0": "active", "worker-1": "active"}


def test_a_failed_task_is_tried_on_another_member_and_given_up_after_max_attempts():
    bench = Bench("reward", members=3, max_attempts=3)
    (task,) = bench.submit("chunk", method="score")
    tried = []
    for _ in range(3):
        (call,) = bench.calls("score")
        tried.append(call.member.slot)
        bench.answer(call, error=ValueError("bad text"))
    assert sorted(tried) == ["replica-0", "replica-1", "replica-2"]
    (gave_up,) = bench.kinds(GaveUp)
    assert (gave_up.task_id, gave_up.method, gave_up.reason, str(gave_up.error)) == (task, "score", "error", "bad text")
    assert set(bench.states().values()) == {"active"}, "an error is no reason to kill anybody"


def test_a_replica_that_judges_nothing_of_a_chunk_is_doubted_before_the_texts_are():
    bench = Bench("reward", members=2, max_attempts=2)
    (task,) = bench.submit("chunk", method="score")
    missing = tuple(Unscored(i, 0, "reward_error", "device lost") for i in range(8))
    tried = []
    for _ in range(2):
        assert not bench.kinds(Done)
        (call,) = bench.calls("score")
        tried.append(call.member.slot)
        bench.open.pop(call.call_id)
        bench.take(bench.pool.on_reply(Reply(call.call_id, "p", Stats(samples=8, unscored=missing)), bench.now))
    assert sorted(tried) == ["replica-0", "replica-1"]
    assert [d.task_id for d in bench.kinds(Done)] == [task], "the second opinion stands"


def test_weights_that_did_not_arrive_as_sent_cost_the_worker_its_life():
    bench = Bench(members=2)
    bench.submit("a")
    (call,) = bench.calls("generate")
    bench.answer(call, error=WeightsMismatchError("hash differs"))
    assert [k.member.slot for k in bench.kinds(Kill)] == [call.member.slot]
    assert len(bench.calls("generate")) == 1, "the other one does the work"


def test_what_was_lost_with_its_node_is_told_and_not_tried_elsewhere():
    bench = Bench("reward", members=2)
    (task,) = bench.submit("a reference to nothing", method="score")
    bench.answer(*bench.calls("score"), error=OSError("object lost"), cause="lost")
    assert bench.kinds(LostArgument) == [LostArgument(task)]
    assert not bench.calls("score")
    assert not bench.pool.tasks


@pytest.mark.parametrize("method", ["adopt", "generate"])
def test_weights_that_went_with_the_learners_node_are_told_as_a_lost_learner(method):
    bench = Bench(members=1, ready=method == "generate")
    if method == "adopt":
        bench.answer(*bench.calls("ready"), {"node": "n1"})
    else:
        bench.submit("a")
    bench.answer(*bench.calls(method), error=OSError("object lost"), cause="lost")
    (failed,) = bench.kinds(Failed)
    assert isinstance(failed.error, LearnerLostError)


def test_a_task_has_its_own_budget_over_all_attempts():
    bench = Bench("reward", members=1, budget_s=50.0, request_s=40.0)
    bench.submit("chunk", method="score")
    bench.pass_time(41)
    assert bench.kinds(GaveUp) == []
    bench.make_ready()
    bench.pass_time(10)
    (gave_up,) = bench.kinds(GaveUp)
    assert gave_up.reason == "timeout"
    assert "within 50 s" in str(gave_up.error)


# --- the first valid answer wins


def test_a_late_answer_of_a_lost_life_counts_if_it_is_the_first():
    bench = Bench(members=1, request_s=10.0)
    (task,) = bench.submit("a")
    (call,) = bench.calls("generate")
    bench.pass_time(11)
    assert [k.member for k in bench.kinds(Kill)] == [call.member]
    bench.answer(call)
    assert [d.task_id for d in bench.kinds(Done)] == [task]
    bench.make_ready()
    assert not bench.calls("generate"), "it is not done a second time"


def test_a_second_answer_is_a_duplicate_and_an_answer_nobody_waits_for_is_nothing():
    bench = Bench(members=2, request_s=10.0)
    task, _ = bench.submit("a", "b")
    slow = bench.calls("generate", "worker-0")[0]
    bench.answer(*bench.calls("generate", "worker-1"))
    bench.pass_time(11)
    (again,) = bench.calls("generate", "worker-1")
    bench.answer(again)
    bench.answer(slow)
    assert [d.task_id for d in bench.kinds(Done)].count(task) == 1
    assert len(bench.kinds(Duplicate)) == 1
    (third,) = bench.submit("c")
    (call,) = bench.calls("generate")
    bench.pool.forget(third)
    assert bench.answer(call) == []


# --- hung and silent


def test_a_hung_member_is_told_from_a_slow_one_by_its_deadline_and_dumped_before_it_is_killed():
    bench = Bench(members=2, request_s=60.0)
    bench.submit("a")
    bench.pass_time(60)
    assert bench.kinds(Kill) == []
    bench.pass_time(1)
    assert bench.kinds(Kill) == [Kill(bench.kinds(Start)[0].member, dump=True)]
    assert "no answer for 61 s (limit 60 s, request_timeout_s)" in bench.notes()[-1]
    assert [c.member.slot for c in bench.calls("generate")][-1] == "worker-1"


def test_only_what_a_hung_member_was_at_is_to_blame():
    bench = Bench(members=2, request_s=60.0, max_attempts=1)
    bench.submit("poison", "b", "behind", "d")
    while calls := bench.calls("generate", "worker-1"):
        bench.answer(calls[0])
    bench.pass_time(61)
    assert len(bench.kinds(GaveUp)) == 1
    assert [c.argument for c in bench.calls("generate", "worker-1")] == ["behind"]


def test_a_member_without_a_sign_of_life_is_killed_alone_and_its_work_moves():
    bench = Bench(members=2, heartbeat_s=20.0, heartbeat_every_s=2.0)
    bench.submit("a", "b")
    deaf = "worker-0"
    start = bench.now
    while not bench.kinds(Kill):
        bench.now += 1
        for call in [c for c in bench.calls("heartbeat") if c.member.slot != deaf]:
            bench.answer(call, {"rss_bytes": 5})
        bench.take(bench.pool.tick(bench.now))
        assert bench.now - start < 30
    assert bench.now - start >= 20
    assert [k.member.slot for k in bench.kinds(Kill)] == [deaf]
    assert "no sign of life" in bench.notes()[-1]
    bench.answer(*bench.calls("generate", "worker-1"))
    assert [c.argument for c in bench.calls("generate", "worker-1")] == ["a"]


def test_a_member_that_says_nothing_but_answers_work_is_alive():
    bench = Bench(members=1, heartbeat_s=20.0)
    for _ in range(10):
        bench.submit("a")
        bench.now += 15
        bench.answer(*bench.calls("generate"))
        bench.take(bench.pool.tick(bench.now))
    assert bench.kinds(Kill) == []


# --- budgets


def test_a_flapping_member_is_given_up_and_below_the_minimum_the_pool_fails_with_the_reason():
    bench = Bench(members=2, max_restarts=2, restart_window_s=600.0, min_members=1)
    for slot in ("worker-0", "worker-1"):
        assert bench.kinds(Failed) == []
        for _ in range(3):
            bench.make_ready()
            bench.submit(*range(4))
            bench.die(slot, OSError("segmentation fault"))
            bench.pass_time(5)
            bench.make_ready()
    (failed,) = bench.kinds(Failed)
    assert isinstance(failed.error, MemberFailedError)
    assert "the rollout pool has 0 members left and needs 1" in str(failed.error)
    assert "segmentation fault" in str(failed.error)
    assert "after 2 restarts within 600 s" in str(failed.error)


def test_a_member_that_never_gets_going_is_given_up_however_slowly_it_fails():
    bench = Bench(members=1, ready=False, start_s=700.0, max_restarts=2, restart_window_s=600.0)
    bench.pass_time(10_000, step=10.0)
    assert [s.member.incarnation for s in bench.kinds(Start)] == [0, 1, 2]
    (failed,) = bench.kinds(Failed)
    assert "not ready within 700 s (start_timeout_s)" in str(failed.error)


def test_a_member_that_works_and_dies_now_and_then_is_replaced_for_ever():
    bench = Bench(members=1, max_restarts=1, restart_window_s=600.0)
    for _ in range(5):
        bench.submit("a")
        bench.die("worker-0")
        bench.make_ready()
        bench.pass_time(10)
        bench.make_ready()
        bench.now += 601
        for call in bench.calls("generate"):
            bench.answer(call)
    assert bench.kinds(Failed) == []


def test_given_up_members_start_afresh_when_somebody_resizes():
    bench = Bench(members=2, max_restarts=0)
    bench.submit("a", "b")
    bench.die("worker-0")
    assert bench.states() == {"worker-0": None, "worker-1": "active"}
    bench.take(bench.pool.resize(2, bench.now))
    bench.make_ready()
    assert bench.states() == {"worker-1": "active", "worker-0": "active"}


# --- sizes


def test_scaling_up_admits_a_worker_once_it_holds_the_current_weights():
    bench = Bench(members=1)
    bench.submit(*range(6))
    bench.take(bench.pool.resize(3, bench.now))
    assert {c.member.slot for c in bench.calls("generate")} == {"worker-0"}
    bench.make_ready()
    assert {c.member.slot for c in bench.calls("generate")} == {"worker-0", "worker-1", "worker-2"}


def test_scaling_down_lets_the_last_ones_finish_what_they_hold_and_gives_them_nothing_new():
    bench = Bench(members=3)
    bench.submit(*range(6))
    bench.take(bench.pool.resize(1, bench.now))
    assert bench.states() == {"worker-0": "active", "worker-1": "draining", "worker-2": "draining"}
    bench.submit("new")
    for call in bench.calls("generate", "worker-2"):
        bench.answer(call)
    assert bench.kinds(Departed) == [Departed("worker-2")]
    assert bench.states() == {"worker-0": "active", "worker-1": "draining"}
    assert not any(c.argument == "new" for c in bench.calls("generate"))


def test_a_member_that_does_not_drain_in_time_is_killed_and_its_work_moves():
    bench = Bench(members=2, drain_s=30.0)
    bench.submit("a", "b")
    bench.take(bench.pool.resize(1, bench.now))
    bench.pass_time(31)
    assert bench.kinds(Departed) == [Departed("worker-1")]
    assert {c.argument for c in bench.calls("generate", "worker-0")} == {"a", "b"}


def test_a_member_that_dies_while_it_drains_is_not_replaced():
    bench = Bench(members=2)
    bench.submit("a", "b")
    bench.take(bench.pool.resize(1, bench.now))
    bench.die("worker-1")
    bench.pass_time(60)
    assert bench.states() == {"worker-0": "active"}
    assert {c.argument for c in bench.calls("generate", "worker-0")} == {"a", "b"}


def test_one_four_one_leaves_one_and_loses_nothing():
    bench = Bench(members=1)
    ids = bench.submit(*range(12))
    for target in (4, 1):
        bench.take(bench.pool.resize(target, bench.now))
        bench.make_ready()
        for call in bench.calls("generate")[:3]:
            bench.answer(call)
    for _ in range(20):
        for call in bench.calls("generate"):
            bench.answer(call)
    assert sorted(d.task_id for d in bench.kinds(Done)) == sorted(ids)
    assert list(bench.states()) == ["worker-0"]
    assert bench.kinds(Duplicate) == []


def test_nodes_that_drain_get_no_new_work_their_members_move_and_no_restart_is_counted():
    bench = Bench(members=1, max_restarts=0)
    bench.submit("a")
    bench.take(bench.pool.leave_nodes(frozenset({"n1"}), bench.now))
    assert [k.member.incarnation for k in bench.kinds(Kill)] == [0]
    bench.make_ready(node="n2")
    assert [c.argument for c in bench.calls("generate") if c.member.incarnation == 1] == ["a"]
    assert bench.take(bench.pool.leave_nodes(frozenset({"n1"}), bench.now)) == []


def unplaced(bench, seconds):
    """So long the newest life has no node, as it is told every 2 s."""
    newest = bench.kinds(Start)[-1].member
    for _ in range(int(seconds / 2)):
        bench.pass_time(2)
        bench.take(bench.pool.place({newest: "it needs 4 CPU, and 2 are free"}, bench.now))


def test_a_worker_that_waits_for_a_node_costs_no_restart_and_has_its_time_to_start_once_it_has_one():
    bench = Bench(members=1, start_s=30.0, room_s=900.0, request_s=900.0)
    bench.submit("a")
    bench.take(bench.pool.resize(2, bench.now))
    unplaced(bench, 8)
    assert not bench.pool.describe(bench.now)["slots"][1]["is_waiting"], "a process that starts has no node either"
    unplaced(bench, 600)
    assert bench.pool.describe(bench.now)["slots"][1]["is_waiting"]
    assert bench.notes()[1:] == ["rollout member worker-1 has no node yet: it needs 4 CPU, and 2 are free"]
    bench.answer(*bench.calls("generate"))
    assert [done.slot for done in bench.kinds(Done)] == ["worker-0"], "the others work on"
    bench.take(bench.pool.place({}, bench.now))
    bench.pass_time(29)
    assert not bench.pool.describe(bench.now)["slots"][1]["is_waiting"]
    bench.make_ready(node="n2")
    assert bench.states() == {"worker-0": "active", "worker-1": "active"}
    assert not bench.kinds(Kill)


def test_a_worker_that_has_found_a_node_must_start_in_its_time():
    bench = Bench(members=1, ready=False, start_s=30.0)
    unplaced(bench, 100)
    bench.take(bench.pool.place({}, bench.now))
    bench.pass_time(31)
    assert "rollout member worker-0 was lost in start: not ready within 30 s (start_timeout_s)" in bench.notes()[-1]


def test_a_worker_that_finds_no_node_in_time_is_given_up_and_can_be_asked_for_again():
    bench = Bench(members=1, start_s=30.0, room_s=60.0)
    bench.take(bench.pool.resize(2, bench.now))
    unplaced(bench, 70)
    assert (
        "rollout member worker-1 found no node with room within 60 s (room_timeout_s): it needs 4 CPU, and"
        in bench.notes()[-1]
    )
    assert [kill.member.slot for kill in bench.kinds(Kill)] == ["worker-1"], "Ray must not look for a node any more"
    assert not bench.kinds(Failed), "one is enough to go on"
    bench.take(bench.pool.resize(2, bench.now))
    bench.make_ready(node="n2")
    assert bench.states() == {"worker-0": "active", "worker-1": "active"}


def test_where_too_few_find_a_node_the_pool_fails():
    bench = Bench(members=1, ready=False, room_s=60.0)
    unplaced(bench, 70)
    (failed,) = bench.kinds(Failed)
    assert "the rollout pool has 0 members left and needs 1: rollout member worker-0 found no node" in str(failed.error)


def test_pools_that_share_ids_know_their_own_replies():
    ids = itertools.count()
    rollout, reward = Pool("rollout", Limits(), call_ids=ids), Pool("reward", Limits(), call_ids=ids)
    (_, send), (_, other) = rollout.resize(1, 0.0)[:2], reward.resize(1, 0.0)[:2]
    assert (rollout.owns(Reply(send.call.call_id)), rollout.owns(Reply(other.call.call_id))) == (True, False)
    rollout.on_reply(Reply(send.call.call_id, {}), 0.0)
    assert not rollout.owns(Reply(send.call.call_id)), "an echo is nobody's"


@pytest.mark.parametrize("role", ["rollout", "reward"])
def test_status_says_what_an_operator_wants_to_know(role):
    bench = Bench(role, members=1)
    bench.submit("a", method="generate" if role == "rollout" else "score")
    (slot,) = bench.pool.roster.slots.values()
    shown = slot.describe(bench.now + 7)
    assert (shown["state"], shown["held"], shown["restarts"], shown["heartbeat_age_s"]) == ("active", 1, 0, 7)
    assert shown["described"] == {"node": "n1", "pid": 1}
    assert shown["weights"] == ("0.3" if role == "rollout" else "")


# --- what is counted and timed


def test_an_answer_says_how_long_it_was_queued_and_how_long_it_took():
    bench = Bench(members=1, depth=1)
    bench.make_ready()
    bench.submit("a", "b")
    bench.now += 4.0
    bench.answer(bench.calls("generate")[0])
    bench.now += 3.0
    bench.answer(bench.calls("generate")[0])
    assert [(done.queued_s, done.took_s) for done in bench.kinds(Done)] == [(0.0, 4.0), (4.0, 3.0)]


def test_what_was_given_back_is_queued_anew():
    bench = Bench(members=2, depth=1)
    bench.make_ready()
    bench.submit("a", "b")
    bench.now += 5.0
    bench.die("worker-0")
    assert [bench.pool.describe(bench.now)[key] for key in ("queued", "queue_age_s")] == [1, 0.0]
    bench.now += 2.0
    assert bench.pool.describe(bench.now)["queue_age_s"] == 2.0
    bench.answer(bench.calls("generate", "worker-1")[0])
    bench.now += 1.0
    bench.answer(bench.calls("generate", "worker-1")[0])
    assert [(done.queued_s, done.took_s) for done in bench.kinds(Done)] == [(0.0, 7.0), (2.0, 1.0)]


def test_restarts_resizes_and_deadlines_are_counted():
    bench = Bench(members=2)
    assert bench.kinds(Counted) == [], "to begin with two is no resize"
    bench.make_ready()
    bench.take(bench.pool.resize(2, bench.now))
    bench.take(bench.pool.resize(3, bench.now))
    bench.submit("a")
    bench.die("worker-0")
    bench.make_ready()
    bench.pass_time(bench.pool.limits.request_s + 1)
    assert [(counted.what, counted.label) for counted in bench.kinds(Counted)] == [
        ("resizes", ""), ("restarts", ""), ("timeouts", "generate"), ("restarts", ""),
    ]  # fmt: skip


# --- many members


def beats_of_each(members, seconds, **limits):
    """A beat is answered a quarter of a second after it was asked for."""
    bench = Bench(members=members, **limits)
    bench.pass_time(seconds, step=0.25)
    beats, rest = divmod(len([send for send in bench.kinds(Send) if send.call.method == "heartbeat"]), members)
    assert not rest
    return beats


def test_a_large_pool_asks_for_signs_of_life_less_often_and_a_small_one_as_configured():
    assert beats_of_each(2, 18.0) == 9, "one in 2 s"
    assert beats_of_each(200, 18.0) == 4, "one in 4 s"


def test_however_large_a_pool_is_a_silent_member_is_asked_twice_within_its_deadline():
    assert beats_of_each(1000, 16.0, heartbeat_s=10.0) == 3, "one in 5 s"


def test_a_member_that_is_busy_with_short_calls_is_asked_for_signs_of_life_all_the_same():
    """Its memory is in them, and nowhere else."""
    bench = Bench(members=1, depth=1)
    bench.make_ready()
    for number in range(40):
        bench.submit(f"prompts-{number}")
        bench.answer(bench.calls("generate")[-1])
        bench.pass_time(0.25, step=0.25)
    assert len([send for send in bench.kinds(Send) if send.call.method == "heartbeat"]) == 5, "10 s at one in 2 s"


def test_what_is_forgotten_counts_nowhere_whichever_of_its_calls_is_answered():
    bench = Bench(members=2, request_s=60.0)
    (task,) = bench.submit("prompts")
    (first,) = bench.calls("generate")
    bench.answer(first, error=ValueError("no"))
    (again,) = bench.calls("generate")
    bench.pool.forget(task)
    bench.answer(again)
    assert not bench.kinds(Done, Duplicate)
    assert not bench.pool._forgotten


# --- weights that are fetched beside work


@pytest.mark.parametrize("prefetches", [True, False])
def test_members_that_work_are_told_of_new_weights_by_a_call_each_where_they_may_fetch_beside_it(prefetches):
    bench = Bench(members=3, prefetches=prefetches)
    bench.submit("prompts")
    later = WeightsHandle(Identity(0, 4), "buffer 4", 4, ())
    bench.take(bench.pool.publish(later, bench.now))
    told = bench.calls("prefetch")
    assert [(c.member.slot, c.argument) for c in told] == [(f"worker-{i}", later) for i in range(3) if prefetches]
    for call in told:
        bench.answer(call, {"fetch": 0.1, "verify": 0.1})
    assert set(bench.states().values()) == {"active"}
    assert not bench.kinds(Kill)
    assert bench.calls("generate"), "the work goes on"


@pytest.mark.parametrize("error", [None, TimeoutError("no buffer within 120 s")])
def test_a_member_prefetches_one_version_at_a_time_and_then_the_newest(error):
    bench = Bench(members=1, prefetches=True)
    versions = [WeightsHandle(Identity(0, step), f"buffer {step}", step, ()) for step in range(4, 8)]
    for handle in versions[:3]:
        bench.take(bench.pool.publish(handle, bench.now))
    (first,) = bench.calls("prefetch")
    bench.answer(first, None if error else {}, error=error)
    assert [call.argument for call in bench.calls("prefetch")] == [versions[2]], "none between"
    bench.answer(*bench.calls("prefetch"), {})
    assert not bench.calls("prefetch"), "it holds the newest"
    bench.take(bench.pool.publish(versions[3], bench.now))
    assert [call.argument for call in bench.calls("prefetch")] == [versions[3]]


def test_a_prefetch_that_holds_no_work_lets_a_member_leave_and_a_damaged_one_costs_its_life():
    bench = Bench(members=2, prefetches=True)
    bench.take(bench.pool.publish(WEIGHTS, bench.now))
    bench.take(bench.pool.resize(1, bench.now))
    assert bench.states() == {"worker-0": "active"}
    call = next(c for c in bench.calls("prefetch") if c.member.slot == "worker-0")
    bench.answer(call, error=WeightsMismatchError("worker-0: weights 0.3 arrived otherwise"))
    assert len(bench.kinds(Kill)) == 2
    assert bench.states() == {"worker-0": "starting"}


@pytest.mark.parametrize("error", [TimeoutError("no buffer within 120 s"), ConfigError("a field"), DataError("a file")])
def test_a_prefetch_that_fails_kills_nobody_for_the_request_that_needs_the_weights_meets_the_same(error):
    bench = Bench(members=1, prefetches=True)
    bench.submit("prompts")
    bench.take(bench.pool.publish(WEIGHTS, bench.now))
    assert bench.answer(*bench.calls("prefetch"), error=error) == []
    assert bench.states() == {"worker-0": "active"}
    bench.take(bench.pool.publish(WEIGHTS, bench.now))
    assert bench.answer(*bench.calls("prefetch"), error=error, cause="lost") == [], "nor is the learner lost for it"
    assert not bench.kinds(Kill, Failed, Counted)
    assert [c.argument for c in bench.calls("generate")] == ["prompts"], "the work goes on"


def test_a_worker_that_dies_in_a_prefetch_is_replaced_and_its_work_moves():
    bench = Bench(members=1, prefetches=True)
    bench.submit("prompts")
    bench.take(bench.pool.publish(WEIGHTS, bench.now))
    bench.answer(*bench.calls("prefetch"), error=OSError("killed"), cause="died")
    assert bench.states() == {"worker-0": "starting"}
    assert [kill.member.slot for kill in bench.kinds(Kill)] == ["worker-0"]
    assert bench.pool.num_queued == 1


def test_status_says_how_long_nearly_all_of_the_last_requests_were_queued():
    bench = Bench(members=1, depth=1)
    assert bench.pool.describe(bench.now)["queue_wait_p95_s"] == 0.0
    bench.submit(*range(5))
    for _ in range(5):
        bench.pass_time(2)
        bench.answer(*bench.calls("generate"))
    waits = [0, 2, 4, 6, 8]
    assert bench.pool.describe(bench.now)["queue_wait_p95_s"] == pytest.approx(np.quantile(waits, 0.95))
