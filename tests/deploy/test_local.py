"""Members and learner as objects of this process: what the supervisor sees of them is what it would see of Ray's."""

import gc
import itertools
import os
import threading
import weakref
from contextlib import closing

import pytest
import torch

from common.checkpoint_store import CheckpointStore
from common.errors import CorruptWeightsError, LearnerLostError
from common.ports import Call, MemberKey
from common.records import ModelPaths, Stats
from common.run_settings import RunSettings
from deploy.local import LocalLearner, LocalRuntime, LocalTransport
from deploy.stop_signal import StopSignal
from deploy.stopwatch import Stopwatch
from learner.service import build_learner

DEADLINE_S = 60.0
WORKER, OTHER = MemberKey("rollout", "worker-0", 0), MemberKey("rollout", "worker-1", 0)
REPLICA = MemberKey("reward", "replica-0", 0)


class Gate:
    """A request that is being worked on until it is opened."""

    def __init__(self):
        self.entered, self.opened = threading.Event(), threading.Event()

    def __call__(self):
        self.entered.set()
        assert self.opened.wait(DEADLINE_S)


class Clerk:
    """A member that notes down what it does."""

    def __init__(self, slot, diary):
        self.slot, self.diary = slot, diary

    def generate(self, request):
        self.diary.append((self.slot, "begins", request))
        if isinstance(request, Gate):
            request()
        if isinstance(request, Exception):
            raise request
        self.diary.append((self.slot, "ends", request))
        return f"payload {request}", Stats(samples=1)

    def score(self, chunk):
        return torch.get_num_threads(), Stats()

    def probe(self):
        return {"part": 0.5}


class Office:
    """A transport with clerks, and the replies that came."""

    def __init__(self, num_threads=None):
        self.diary, self.replies, self.built, self.unable = [], [], {}, {}
        self._ids = itertools.count()
        self._arrived = threading.Condition()
        self.transport = LocalTransport(
            {"rollout": self.build, "reward": self.build}, num_threads or {"rollout": 1, "reward": 1}
        )
        self.transport.receive(self.receive)

    def build(self, slot):
        if slot in self.unable:
            raise self.unable[slot]
        clerk = Clerk(slot, self.diary)
        self.built.setdefault(slot, []).append(weakref.ref(clerk))
        return clerk

    def receive(self, reply):
        with self._arrived:
            self.replies.append(reply)
            self._arrived.notify_all()

    def send(self, member, method, argument=None):
        call = Call(next(self._ids), member, method, argument)
        self.transport.send(call)
        return call.call_id

    def reply(self, call_id):
        """The reply to a call, once it is there."""

        def found():
            return [reply for reply in self.replies if reply.call_id == call_id]

        with self._arrived:
            assert self._arrived.wait_for(found, timeout=DEADLINE_S), "no reply"
            return found()[0]

    def ask(self, member, method, argument=None):
        return self.reply(self.send(member, method, argument))

    def start(self, *members):
        for member in members:
            self.transport.start(member, avoid="")
            assert self.ask(member, "ready").error is None


@pytest.fixture
def office():
    built = Office()
    with closing(built.transport):
        yield built


def test_a_member_is_built_with_the_name_of_its_slot_and_says_where_it_is(office):
    reply = office.ask(WORKER, "ready")
    assert reply.payload["pid"] == os.getpid()
    assert reply.payload["threads"] == 1
    assert list(office.built) == ["worker-0"]


def test_work_brings_payload_and_stats_other_calls_what_was_answered(office):
    office.start(WORKER, REPLICA)
    work = office.ask(WORKER, "generate", "a")
    assert (work.payload, work.stats, work.error) == ("payload a", Stats(samples=1), None)
    probe = office.ask(REPLICA, "probe")
    assert (probe.payload, probe.stats) == ({"part": 0.5}, None)


def test_calls_are_carried_out_one_at_a_time_in_the_order_in_which_they_were_sent(office):
    office.start(WORKER, OTHER)
    sent = [office.send([WORKER, OTHER][number % 2], "generate", number) for number in range(20)]
    for call_id in sent:
        office.reply(call_id)
    assert office.diary == [
        (f"worker-{number % 2}", what, number) for number in range(20) for what in ("begins", "ends")
    ]
    assert [reply.call_id for reply in office.replies if reply.call_id in sent] == sent


def test_an_error_is_the_reply_and_the_next_call_is_carried_out(office):
    office.start(WORKER)
    error = ValueError("CUDA error")
    failed = office.ask(WORKER, "generate", error)
    assert failed.error is error
    assert (failed.payload, failed.stats, failed.cause) == (None, None, "raised")
    assert office.ask(WORKER, "generate", "b").payload == "payload b"


def test_a_member_that_cannot_be_built_says_why(office):
    office.unable["worker-0"] = OSError("no such model")
    assert office.ask(WORKER, "ready").error is office.unable["worker-0"]
    office.start(OTHER)


def test_a_killed_member_is_forgotten_after_what_it_is_at_and_another_life_begins(office):
    office.start(WORKER)
    gate = Gate()
    running = office.send(WORKER, "generate", gate)
    assert gate.entered.wait(DEADLINE_S)
    office.transport.kill(WORKER, dump=True)
    gate.opened.set()
    assert office.reply(running).error is None
    second = MemberKey("rollout", "worker-0", 1)
    office.start(second)
    gc.collect()
    first_clerk, second_clerk = (clerk() for clerk in office.built["worker-0"])
    assert first_clerk is None
    assert second_clerk is not None
    office.transport.kill(OTHER, dump=False)  # who is not there any more
    assert office.ask(second, "generate", "c").payload == "payload c"


def test_each_role_works_with_its_own_threads_and_leaves_those_of_others_alone():
    mine = torch.get_num_threads()
    office = Office({"rollout": 1, "reward": 2})
    with closing(office.transport):
        office.start(WORKER, REPLICA)
        assert office.ask(REPLICA, "score", "x").payload == 2
        assert office.ask(WORKER, "score", "x").payload == 1
        assert office.ask(REPLICA, "ready").payload["threads"] == 2
    assert torch.get_num_threads() == mine


def test_closing_waits_for_what_runs_and_carries_out_nothing_more(office):
    office.start(WORKER)
    gate, before = Gate(), len(office.replies)
    office.send(WORKER, "generate", gate)
    office.send(WORKER, "generate", "never")
    assert gate.entered.wait(DEADLINE_S)
    closer = threading.Thread(target=office.transport.close)
    closer.start()
    closer.join(timeout=0.05)
    assert closer.is_alive(), "something runs"
    gate.opened.set()
    closer.join(timeout=DEADLINE_S)
    assert not closer.is_alive()
    assert office.diary == [("worker-0", "begins", gate), ("worker-0", "ends", gate)]
    assert len(office.replies) == before, "nobody is there to be told"


def test_objects_are_on_no_node_and_payloads_are_themselves(office):
    payload = object()
    assert office.transport.fetch(payload, 1.0) is payload
    assert office.transport.draining_nodes() == frozenset()


# --- the learner


@pytest.fixture
def learner(tiny, tiny_run, tmp_path):
    models = tiny_run / "models"
    paths = ModelPaths(str(models / "sft"), str(models / "reward_model"))
    built = []

    def build():
        built.append(torch.get_num_threads())
        return build_learner(tiny(), paths, tmp_path)

    watch = Stopwatch()
    with closing(LocalLearner(build, 2, watch)) as learner:
        yield learner, built, watch


def test_the_learner_has_its_own_threads_and_says_so(learner):
    learner, built, _ = learner
    assert built == [2]
    assert learner.described["threads"] == 2
    assert learner.described["pid"] == os.getpid()


def test_another_learner_starts_from_the_policy_before_ppo(learner):
    learner, built, watch = learner
    first = learner.weights()
    with torch.no_grad():
        next(learner._service.learner.plain.parameters()).add_(1.0)
    learner._service.learner.flat.forget()
    assert learner.weights().hash != first.hash
    learner.restart()
    assert len(built) == 2
    learner.load(None, lineage=4)
    assert learner.weights().hash == first.hash
    assert (learner.weights().identity.lineage, learner.step) == (4, 0)
    assert watch.take()["publish"] > 0


def test_a_checkpoint_is_of_the_moment_in_which_it_was_begun_and_is_waited_for(learner, tmp_path):
    learner, _, watch = learner
    before = learner.weights()
    store = CheckpointStore(str(tmp_path), keep_last=1, keep_best=0)
    saving = learner.begin_save(store.place(0))
    with torch.no_grad():
        next(learner._service.learner.plain.parameters()).add_(1.0)
    learner.close()
    assert saving.done()
    checkpoint = store.commit(0, saving.result(), {}, None)
    learner.load(checkpoint.url, lineage=1)
    assert learner.weights().hash == before.hash
    assert watch.take()["snapshot"] > 0


def test_corrupt_weights_are_neither_saved_nor_published_nor_a_learner_any_more(learner, tmp_path, monkeypatch):
    learner, *_ = learner
    next(learner._service.learner.plain.parameters()).data.view(-1)[0] = float("inf")
    with pytest.raises(CorruptWeightsError):
        learner.begin_save(str(tmp_path / "checkpoint"))
    with pytest.raises(CorruptWeightsError):
        learner.weights()
    monkeypatch.setattr(type(learner._service), "update", lambda service, *given: service.learner.check_finite())
    learner.prepare([])
    with pytest.raises(LearnerLostError, match="the learner in update: weights or optimizer state"):
        learner.update(RunSettings.of(learner._service.learner.config))


# --- the runtime


def test_evaluation_has_no_learner_and_all_members_end_with_the_block(tiny, tiny_run, tmp_path):
    models = tiny_run / "models"
    paths = ModelPaths(*(str(models / name) for name in ("sft", "reward_model", "judge")))
    before = set(threading.enumerate())
    runtime = LocalRuntime()
    with runtime.members(tiny(), paths, tmp_path, StopSignal(), with_learner=False) as members:
        assert members.learner is None
        replies, there = [], threading.Event()
        members.transport.receive(lambda reply: (replies.append(reply), there.set()))
        members.transport.send(Call(0, WORKER, "ready"))
        assert there.wait(DEADLINE_S)
        assert replies[0].error is None
    runtime.close()
    assert set(threading.enumerate()) <= before
