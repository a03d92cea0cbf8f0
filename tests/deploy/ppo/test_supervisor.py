"""The supervisor's real thread over members in memory that answer from other threads, never, or with errors."""

import threading
import time
from collections import Counter
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from actors.prompts import PromptStream
from common.errors import (
    ConfigError,
    LedgerError,
    MemberFailedError,
    NonFiniteError,
    RunStopped,
    StageEndedError,
    TooManyDropsError,
)
from common.metrics import RunMetrics
from common.ports import Reply
from common.records import Identity, UpdateReport, WeightsHandle
from common.supervision import Ledger, Limits
from deploy.ppo.chunk_flow import ChunkFlow
from deploy.ppo.conductor import Conductor
from deploy.ppo.supervisor import Supervisor
from deploy.stop_signal import StopSignal
from deploy.stopwatch import Stopwatch

DEADLINE_S = 60.0
"""Of a single wait: only a hang takes so long."""


class Crew:
    """A transport whose members are threads: each call is answered by one of three, in no order.

    Args:
        answer: what a sound member answers.
    """

    def __init__(self, answer):
        self.answer = answer
        self.alive, self.killed, self.sent, self.avoided = set(), [], [], {}
        self.draining = frozenset()
        self.has_room = True
        self.silent = set()
        """Methods that the first life of a member never answers."""
        self.silent_role = None
        """Role whose heartbeats are never answered."""
        self.ignored = set()
        """Members whose heartbeats were not answered."""
        self.broken = {}
        """Method to the error that `send` raises."""
        self.failing = {}
        """Method to the errors with which the next calls are answered."""
        self._executor = ThreadPoolExecutor(3, thread_name_prefix="crew")

    def receive(self, receiver):
        self.receiver = receiver

    def start(self, member, *, avoid):
        assert member not in self.alive
        self.alive.add(member)
        self.avoided[member] = avoid

    def send(self, call):
        assert call.member in self.alive, "nothing is sent to who was never started, or killed"
        if call.method in self.broken:
            raise self.broken[call.method]
        self.sent.append(call)
        if call.method == "heartbeat" and call.member.role == self.silent_role:
            self.ignored.add(call.member)
        elif call.method not in self.silent or call.member.incarnation > 0:
            self._executor.submit(self._reply, call)

    def _reply(self, call):
        errors = self.failing.get(call.method, [])
        reply = Reply(call.call_id, error=errors.pop(0)) if errors else self.answer(call)
        self.receiver(reply)

    def kill(self, member, *, dump):
        self.alive.remove(member)
        self.killed.append((member.slot, dump))

    def draining_nodes(self):
        return self.draining

    def unplaced(self):
        return {} if self.has_room else dict.fromkeys(self.alive, "it needs 4 CPU")

    def fetch(self, ref, timeout_s):
        return ref

    def close(self):
        self._executor.shutdown(wait=True)


class Clock:
    """The time, which can be moved on."""

    def __init__(self):
        self._ahead = 0.0

    def __call__(self):
        return time.monotonic() + self._ahead

    def skip(self, seconds):
        self._ahead += seconds


class Bridge:
    """A supervisor with all that it speaks to."""

    def __init__(self, supervisor, *, crew, clock, stop, metrics, watch, notes, kept):
        self.supervisor, self.crew, self.clock, self.stop = supervisor, crew, clock, stop
        self.metrics, self.watch, self.notes, self.kept = metrics, watch, notes, kept

    def value(self, name, **labels):
        return self.metrics.registry.get_sample_value(f"minichatgpt_{name}", labels)

    def in_background(self, work):
        """The outcome of something that waits, with an end."""
        future = Future()

        def run():
            try:
                future.set_result(work())
            except BaseException as error:
                future.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return future

    def fall_silent(self, role):
        """Let members of a role give no sign of life until they are given up."""
        number = len(self.crew.killed)
        self.crew.silent_role = role
        self.clock.skip(3.0)
        poll(lambda: len(self.crew.ignored) == 2, "heartbeats are due")
        self.clock.skip(30.0)
        poll(lambda: len(self.crew.killed) >= number + 2, "they are given up")
        self.crew.silent_role = None

    def active(self):
        return {role: pool["active"] for role, pool in self.supervisor.describe().items()}


def weights_of(step, lineage=0):
    return WeightsHandle(Identity(lineage, step), f"buffer {step}", step, ())


def report_of(step, handles, **fields):
    trained = tuple((draw, 0) for handle in handles for draw in handle.draw_indices)
    return UpdateReport(step, Identity(0, step), trained, {}, {}, **fields)


def draws_of(handles):
    return [draw for handle in handles for draw in handle.draw_indices]


def poll(condition, what):
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {DEADLINE_S:.0f} s"
        time.sleep(0.005)


@pytest.fixture
def bridge(tiny, member_answer):
    """Builds a supervisor: two workers, two replicas, weights published; 32 samples per update in chunks of 8."""
    with ExitStack() as stack:

        def build(*changes, published=True, prepare=lambda crew: None):
            config = tiny(*changes)
            prompts = PromptStream(
                [np.arange(20, dtype=np.int32) + 20 * i for i in range(7)],
                prompt_tokens=config.ppo.prompt_tokens,
                response_tokens=config.ppo.response_tokens,
                seed=config.seed,
            )
            conductor = Conductor(
                ChunkFlow(
                    config,
                    prompts=prompts,
                    rollout=Limits.of(config.rollout, min_members=1),
                    reward=Limits.of(config.reward_service, min_members=1, budget_s=config.reward_service.budget_s),
                    with_reference=True,
                    ledger=Ledger(),
                )
            )
            crew = stack.enter_context(closing(Crew(member_answer)))
            prepare(crew)
            stop, metrics, watch = StopSignal(), RunMetrics(CollectorRegistry()), Stopwatch()
            clock, notes, kept = Clock(), [], []
            supervisor = Supervisor(
                conductor,
                crew,
                metrics=metrics,
                watch=watch,
                stop=stop,
                note=notes.append,
                keep=lambda ledger: kept.append((len(crew.sent), ledger)),
                clock=clock,
            )
            stack.enter_context(closing(supervisor))
            supervisor.resize(workers=2, replicas=2)
            if published:
                supervisor.publish(weights_of(0))
            return Bridge(
                supervisor, crew=crew, clock=clock, stop=stop, metrics=metrics, watch=watch, notes=notes, kept=kept
            )

        yield build


# --- samples


def test_samples_come_in_draw_order_are_booked_and_the_stream_goes_on(bridge):
    b = bridge()
    for step in range(3):
        b.supervisor.publish(weights_of(step))
        handles = b.supervisor.collect(32)
        assert draws_of(handles) == list(range(32 * step, 32 * step + 32))
        assert {h.rollout_stats.identity.step for h in handles} == {step}
        assert all(tuple(r.draw_index for r in h.rollouts.rollouts) == h.draw_indices for h in handles)
        b.supervisor.account(report_of(step + 1, handles))
    ledger = b.supervisor.ledger()
    assert (ledger.dispatched, ledger.trained, ledger.in_flight, ledger.buffered) == (96, 96, 0, 0)
    assert b.supervisor.state_dict() == {"next_draw_index": 96, "ledger": ledger.as_dict()}


def test_lost_payloads_are_made_once_more_and_the_others_stay(bridge):
    b = bridge()
    handles = b.supervisor.collect(32)
    again = b.supervisor.regenerate(handles, [1, 3])
    assert draws_of(again) == list(range(32))
    assert [a is h for a, h in zip(again, handles, strict=True)] == [True, False, True, False]
    assert b.supervisor.ledger().buffered == 32
    b.supervisor.account(report_of(1, again))


def test_samples_outside_of_training_move_neither_stream_nor_ledger(bridge):
    b = bridge()
    stream = b.supervisor.command(lambda now: b.supervisor.conductor.prompts)
    handles = b.supervisor.sample([stream.prompt_at(draw) for draw in range(100, 112)])
    assert draws_of(handles) == list(range(100, 112))
    assert b.supervisor.ledger() == Ledger()
    assert draws_of(b.supervisor.collect(32)) == list(range(32))


def test_a_copy_of_the_ledger_is_nobody_elses(bridge):
    b = bridge()
    b.supervisor.ledger().dispatch(5)
    assert b.supervisor.ledger().dispatched == 0


def test_going_back_to_a_checkpoint_gives_the_same_samples_once_more(bridge):
    b = bridge()
    b.supervisor.account(report_of(1, b.supervisor.collect(32)))
    state = b.supervisor.state_dict()
    b.supervisor.publish(weights_of(1))
    first = b.supervisor.collect(32)
    b.supervisor.roll_back(state)
    b.supervisor.publish(weights_of(1, lineage=1))
    again = b.supervisor.collect(32)
    assert draws_of(again) == draws_of(first)
    assert {h.rollout_stats.identity for h in again} == {Identity(1, 1)}
    ledger = b.supervisor.ledger()
    assert (ledger.dispatched, ledger.trained, ledger.rolled_back, ledger.buffered) == (96, 32, 32, 32)
    assert b.kept[-1][1] == ledger


# --- commands


def test_an_error_of_a_command_is_its_senders_and_the_thread_goes_on(bridge):
    b = bridge()
    with pytest.raises(LedgerError, match="33 samples asked for where staleness admits 32"):
        b.supervisor.collect(33)
    with pytest.raises(NonFiniteError):
        b.supervisor.command(lambda now: (_ for _ in ()).throw(NonFiniteError("of this command")))
    assert draws_of(b.supervisor.collect(32)) == list(range(32))


def test_weights_must_be_published_first(bridge):
    b = bridge(published=False)
    with pytest.raises(RuntimeError, match="publish weights before collecting"):
        b.supervisor.collect(32)


def test_others_may_look_and_resize_while_somebody_waits_for_samples(bridge):
    b = bridge(prepare=lambda crew: crew.silent.add("generate"))
    waiting = b.in_background(lambda: b.supervisor.collect(32))
    poll(lambda: b.supervisor.ledger().in_flight == 32, "all is dispatched")
    b.crew.silent.clear()
    b.supervisor.resize(workers=4)
    poll(lambda: b.active()["rollout"] == 4, "two more")
    assert not waiting.done(), "workers hold their chunks, and answer nothing"
    for name in ("worker-0", "worker-1"):
        for call in [c for c in b.crew.sent if c.member.slot == name and c.method == "generate"]:
            b.crew.receiver(Reply(call.call_id, error=OSError("cut off"), cause="died"))
    assert draws_of(waiting.result(timeout=DEADLINE_S)) == list(range(32))
    assert Counter(note.event for note in b.notes)["restart"] == 2
    ledger = b.supervisor.ledger()
    assert (ledger.dispatched, ledger.buffered, ledger.duplicates) == (32, 32, 0)


def test_the_pools_are_described_for_status(bridge):
    b = bridge()
    poll(lambda: b.active() == {"rollout": 2, "reward": 2}, "all are active")
    rollout = b.supervisor.describe()["rollout"]
    assert (rollout["target"], [slot["name"] for slot in rollout["slots"]]) == (2, ["worker-0", "worker-1"])
    assert rollout["slots"][0]["described"]["pid"] == 1
    assert rollout["slots"][0]["weights"] == "0.0"


# --- the end of a wait


def test_a_wish_to_stop_ends_the_wait(bridge):
    b = bridge(prepare=lambda crew: crew.silent.add("score"))
    waiting = b.in_background(lambda: b.supervisor.collect(32))
    poll(lambda: any(c.method == "score" for c in b.crew.sent), "the replicas have work")
    assert not waiting.done()
    b.stop.request("enough", 3)
    with pytest.raises(RunStopped, match="enough"):
        waiting.result(timeout=DEADLINE_S)
    b.supervisor.abandon()
    assert b.supervisor.ledger().in_flight == 32, "until they are rolled back"


def test_a_wish_to_stop_is_heard_where_samples_come_at_once(bridge):
    b = bridge()
    b.stop.request("enough", 3)
    with pytest.raises(RunStopped, match="enough"):
        b.supervisor.collect(32)
    assert b.supervisor.ledger().dispatched == 0, "and nothing more is begun"


def test_a_pool_that_cannot_go_on_ends_the_wait_with_its_reason(bridge):
    error = ConfigError("no such model")
    b = bridge(prepare=lambda crew: crew.failing.update(ready=[error] * 4))
    with pytest.raises(ConfigError, match="no such model"):
        b.supervisor.collect(32)


def test_a_pool_that_fails_while_nobody_waits_is_told_to_the_next_who_does(bridge):
    b = bridge("rollout.max_restarts=0")
    b.supervisor.account(report_of(1, b.supervisor.collect(32)))
    b.fall_silent("rollout")
    b.supervisor.publish(weights_of(1))
    with pytest.raises(
        MemberFailedError, match=r"the rollout pool has 0 members left and needs 1: .*worker-0 .*no sign of life"
    ):
        b.supervisor.collect(32)


def test_a_reward_service_that_scores_nothing_ends_the_wait(bridge, member_answer):
    b = bridge("reward_service.max_attempts=1")
    b.crew.answer = lambda call: member_answer(call, unscored=range(1000))
    with pytest.raises(TooManyDropsError, match=r"40 samples .*reward_nonfinite.*limit 32"):
        b.supervisor.collect(32)
    ledger = b.supervisor.ledger()
    assert set(ledger.dropped) == {"reward_nonfinite"}
    assert 40 <= ledger.dropped["reward_nonfinite"] <= 64, "what was on its way is dropped too"
    ledger.check()


@pytest.mark.parametrize("method", ["generate", "score"])
def test_a_crash_of_the_thread_is_seen_by_all_who_wait_and_none_hangs(bridge, method):
    """`generate` is sent by the command of who waits, `score` when a worker has answered."""
    b = bridge()
    poll(lambda: b.active() == {"rollout": 2, "reward": 2}, "all are active")
    b.crew.broken[method] = OSError("the network is gone")
    waiting = b.in_background(lambda: b.supervisor.collect(32))
    with pytest.raises(OSError, match="the network is gone"):
        waiting.result(timeout=DEADLINE_S)
    with pytest.raises(OSError, match="the network is gone"):
        b.in_background(b.supervisor.ledger).result(timeout=DEADLINE_S)


def test_closing_ends_the_thread_and_late_commands_are_refused(bridge):
    b = bridge()
    b.supervisor.collect(32)
    b.supervisor.close()
    assert not [t for t in threading.enumerate() if t.name.startswith("supervisor")]
    with pytest.raises(StageEndedError, match="has ended"):
        b.in_background(b.supervisor.describe).result(timeout=DEADLINE_S)


# --- members


def test_members_that_fall_silent_are_replaced_and_their_work_moves(bridge):
    b = bridge(prepare=lambda crew: crew.silent.add("generate"))
    waiting = b.in_background(lambda: b.supervisor.collect(32))
    poll(lambda: b.active()["rollout"] == 2, "both have work")
    b.fall_silent("rollout")
    assert draws_of(waiting.result(timeout=DEADLINE_S)) == list(range(32))
    assert "no sign of life" in next(note.text for note in b.notes if note.event == "restart")
    nodes = {(member.slot, member.incarnation): node for member, node in b.crew.avoided.items()}
    assert (nodes["worker-0", 0], nodes["worker-0", 1]) == ("", "n1"), "it may be the node that is sick"


def test_members_leave_a_node_that_is_about_to_go_and_their_work_moves(bridge):
    b = bridge(prepare=lambda crew: crew.silent.add("generate"))
    waiting = b.in_background(lambda: b.supervisor.collect(32))
    poll(lambda: sum(c.method == "generate" for c in b.crew.sent) == 3, "one of two workers holds a second chunk")
    b.crew.draining = frozenset({"n1"})
    poll(lambda: {slot for slot, _ in b.crew.killed} >= {"worker-0", "worker-1"}, "they leave")
    b.crew.draining = frozenset()
    assert draws_of(waiting.result(timeout=DEADLINE_S)) == list(range(32))
    events = {note.event for note in b.notes}
    assert "drain" in events
    assert not events & {"restart", "given_up"}, "nobody is blamed for its node"


def test_members_that_have_no_node_yet_are_told_of_and_not_taken_for_late(bridge):
    def prepare(crew):
        crew.silent.add("ready")
        crew.has_room = False

    b = bridge(prepare=prepare)
    members = b.supervisor.conductor.rollout.roster.members
    b.clock.skip(3)
    poll(lambda: all(member.is_unplaced for member in members()), "the supervisor has looked")
    b.clock.skip(500)
    poll(lambda: sum(note.event == "waiting" for note in b.notes) == 4, "all are told of")
    assert {note.event for note in b.notes} == {"waiting"}


def test_who_leaves_takes_its_series_along(bridge):
    b = bridge()
    poll(lambda: b.active()["rollout"] == 2, "both are there")
    b.supervisor.account(report_of(1, b.supervisor.collect(32)))
    assert b.value("generated_tokens_total", slot="worker-1") > 0
    b.supervisor.resize(workers=1)
    poll(lambda: len(b.supervisor.describe()["rollout"]["slots"]) == 1, "the second one leaves")
    assert b.value("generated_tokens_total", slot="worker-1") is None
    assert b.value("weights_step", slot="worker-1") is None
    assert b.value("generated_tokens_total", slot="worker-0") > 0
    assert ("worker-1", False) in b.crew.killed


def series(b):
    """All that is exported, values left out."""
    return {(s.name, *sorted(s.labels.items())) for f in b.metrics.registry.collect() for s in f.samples}


def of_workers(b):
    return {one for one in series(b) if str(dict(one[1:]).get("slot")).startswith("worker-")}


def test_fifty_resizes_leave_the_same_series(bridge):
    b = bridge()
    b.supervisor.resize(workers=1)
    poll(lambda: len(b.supervisor.describe()["rollout"]["slots"]) == 1, "one is left")
    b.supervisor.account(report_of(1, b.supervisor.collect(32)))
    stay = {"worker-0", "replica-0", "replica-1"}
    poll(
        lambda: {dict(ls).get("slot") for name, *ls in series(b) if "memory" in name} >= stay, "heartbeats tell memory"
    )
    before, most = series(b), set()
    for number in range(25):
        b.supervisor.publish(weights_of(number + 1))
        b.supervisor.resize(workers=4)
        poll(lambda: b.active()["rollout"] == 4, "four work")
        b.supervisor.account(report_of(number + 2, b.supervisor.collect(32)))
        most |= series(b) - before
        b.supervisor.resize(workers=1)
        poll(lambda: len(b.supervisor.describe()["rollout"]["slots"]) == 1, "one is left")
    assert {dict(labels).get("slot") for _, *labels in most} == {"worker-1", "worker-2", "worker-3"}
    assert series(b) == before
    assert b.value("resizes_total", role="rollout") == 51
    poll(lambda: b.value("members_target", role="rollout") == 1, "it is seen")
    b.supervisor.close()
    assert {dict(labels)["slot"] for _, *labels in series(b) if "slot" in dict(labels)} == {"driver", "learner"}


def test_who_replaces_a_dead_member_goes_on_with_its_series(bridge):
    b = bridge()
    b.supervisor.account(report_of(1, b.supervisor.collect(32)))
    before, tokens = of_workers(b), b.value("generated_tokens_total", slot="worker-0")
    assert len(before) > 10
    b.fall_silent("rollout")
    poll(lambda: b.active()["rollout"] == 2, "two others")
    b.supervisor.publish(weights_of(1))
    b.supervisor.account(report_of(2, b.supervisor.collect(32)))
    assert of_workers(b) == before
    assert b.value("generated_tokens_total", slot="worker-0") > tokens
    assert b.value("restarts_total", role="rollout") == 2
    assert b.value("timeouts_total", role="rollout", phase="heartbeat") == 2
    assert b.value("weights_step", slot="worker-0") == 1


def test_metrics_say_how_stale_samples_were_and_how_far_members_are_behind(bridge):
    b = bridge()
    poll(lambda: b.active() == {"rollout": 2, "reward": 2}, "all are active")
    handles = b.supervisor.collect(32)
    b.supervisor.account(report_of(3, handles))
    assert b.value("staleness_updates_sum") == 32 * 2, "made at step 0, trained on at step 2"
    b.supervisor.publish(weights_of(3))
    b.supervisor.roll_back(b.supervisor.state_dict())
    assert (b.value("published_step"), b.value("weights_step", slot="worker-0")) == (3, 0)
    assert b.value("weights_lag_updates", slot="worker-0") == 3
    assert 0 <= b.value("weights_age_seconds", slot="worker-0") < DEADLINE_S
    assert [b.value("members", role="reward", state=state) for state in ("active", "starting")] == [2, 0]


def test_members_are_looked_at_about_once_a_second_while_nothing_happens(bridge):
    b = bridge()
    poll(lambda: b.active() == {"rollout": 2, "reward": 2}, "all are active")
    poll(lambda: b.value("members", role="rollout", state="active") == 2, "it is seen")
    assert b.value("memory_bytes", role="driver", slot="driver") > 1e6


def test_what_waits_for_a_member_is_seen(bridge):
    b = bridge(prepare=lambda crew: crew.silent.add("generate"))
    poll(lambda: b.active()["rollout"] == 2, "both are there")
    b.supervisor.resize(workers=1)
    waiting = b.in_background(lambda: b.supervisor.collect(32))
    poll(lambda: b.supervisor.ledger().in_flight == 32, "all is dispatched")
    b.clock.skip(5.0)
    poll(lambda: (b.value("queue_age_seconds", role="rollout") or 0) >= 5, "two chunks wait for room")
    assert b.value("queue_length", role="rollout") == 2
    assert b.value("calls_held", role="rollout", slot="worker-0") == 2
    assert not waiting.done()


# --- what others are told


def test_metrics_seconds_and_notes_say_what_members_did(bridge):
    b = bridge()
    poll(lambda: b.active() == {"rollout": 2, "reward": 2}, "all are active")
    b.supervisor.account(report_of(1, b.supervisor.collect(32)))
    tokens = [b.value("generated_tokens_total", slot=f"worker-{i}") for i in range(2)]
    assert sum(tokens) == 32
    assert b.value("phase_seconds_sum", role="rollout", phase="generate") == 4 * 0.25
    assert b.value("phase_seconds_count", role="reward", phase="reference") == 4
    assert b.value("samples", fate="trained", reason="") == 32
    assert b.value("samples_dispatched") == 32
    seconds = b.watch.take()
    assert seconds.pop("collect") > 0
    assert seconds == {"generate": 1.0, "score": 2.0, "reference": 0.5}
    assert {note.slot for note in b.notes if note.event == "active"} == {
        "replica-0",
        "replica-1",
        "worker-0",
        "worker-1",
    }


def test_the_ledger_is_kept_before_anything_is_dispatched(bridge, member_answer):
    """Also in later rounds, for what was dropped: after kill -9 none is uncounted."""
    b = bridge()
    unscored = {3, 17}
    b.crew.answer = lambda call: member_answer(call, unscored)
    poll(lambda: b.active() == {"rollout": 2, "reward": 2}, "all are active")
    assert draws_of(b.supervisor.collect(32)) == [d for d in range(34) if d not in unscored]
    requests = [(i, c.argument) for i, c in enumerate(b.crew.sent) if c.method == "generate"]
    for position, request in requests:
        highest = max(p.draw_index for p in request.prompts)
        assert any(sent <= position and ledger.dispatched > highest for sent, ledger in b.kept), request.chunk_index
    for _, ledger in b.kept:
        ledger.check()
    assert b.kept[-1][1].buffered == 32
