"""The checkpoints of a run: when they are written, that nobody waits for them, and that no failure stays unsaid."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor

import pytest
import torch
from prometheus_client import CollectorRegistry

from common.checkpoint import write_shard
from common.checkpoint_store import CheckpointStore
from common.errors import CheckpointError, MemberFailedError
from common.metrics import RunMetrics
from common.ppo_config import PPOConfig
from common.records import Identity, UpdateReport
from common.storage import Folder
from deploy.ppo.checkpoint_writer import CheckpointWriter

LIMIT_S = 60.0


class SlowLearner:
    """A learner whose weights are its step; it writes when it is told to, in a thread of its own."""

    def __init__(self):
        self.step = 0
        self.lineage = 0
        self.go_on = threading.Event()
        self.go_on.set()
        self.fails = None
        self.urls = []
        self._writer = ThreadPoolExecutor(max_workers=1)

    def begin_save(self, url):
        if isinstance(self.fails, MemberFailedError):
            raise self.fails
        self.urls.append(url)
        return self._writer.submit(self._write, url, self.step, self.fails)

    def _write(self, url, step, fails):
        assert self.go_on.wait(LIMIT_S)
        if fails is not None:
            raise fails
        return write_shard(url, {"weight": torch.full((2,), float(step))}, {"step": step, "lineage": self.lineage})


class Cursor:
    """Rollouts that only know where they are."""

    def __init__(self, learner):
        self.learner = learner

    def state_dict(self):
        return {"next_draw_index": 16 * self.learner.step}


@pytest.fixture
def learner():
    return SlowLearner()


@pytest.fixture(params=["path", "memory"])
def store(request, tmp_path):
    url = str(tmp_path / "checkpoints") if request.param == "path" else f"memory://{tmp_path.name}"
    return CheckpointStore(url, keep_last=2, keep_best=1)


@pytest.fixture
def warnings():
    return []


@pytest.fixture
def metrics():
    return RunMetrics(CollectorRegistry())


@pytest.fixture
def writer(store, warnings, metrics):
    writers = []

    def build(*, save_timeout_s=LIMIT_S, **changed):
        config = PPOConfig.model_validate({"data": ["texts"], "updates": 6, "checkpoint_every": 2} | changed)
        writers.append(
            CheckpointWriter(
                store,
                config,
                settings=lambda: {"seed": 7},
                save_timeout_s=save_timeout_s,
                warn=warnings.append,
                metrics=metrics,
            )
        )
        return writers[-1]

    yield build
    for each in writers:
        each.close()


def report(step, score=0.0, **changed):
    return UpdateReport(step, Identity(0, step), ((0, 0),), {"score_mean": score}, {}, **changed)


def train(writer, learner, steps, scores=None):
    """The loop, as far as checkpoints are concerned."""
    saved = []
    for step in steps:
        learner.step = step
        writer.saw(report(step, (scores or {}).get(step, 0.0)))
        if writer.due(step):
            writer.save(learner, Cursor(learner))
            saved.append(step)
    return saved


# --- when


@pytest.mark.parametrize(("every", "saved"), [(0, [6]), (1, [1, 2, 3, 4, 5, 6]), (2, [2, 4, 6]), (4, [4, 6]), (9, [6])])
def test_checkpoints_are_due_every_so_many_updates_and_after_the_last_one(writer, learner, every, saved):
    assert train(writer(checkpoint_every=every), learner, range(1, 7)) == saved


def test_a_checkpoint_holds_state_settings_and_score(writer, learner, store):
    saving = writer()
    train(saving, learner, range(1, 3), {2: 0.75})
    saving.wait()
    newest, damaged = store.newest_verified()
    assert saving.newest == newest
    assert (newest.step, newest.score, damaged) == (2, 0.75, [])
    assert store.read_state(newest) == {"settings": {"seed": 7}, "rollouts": {"next_draw_index": 32}}


def test_the_best_score_stays(writer, learner, store):
    saving = writer()
    train(saving, learner, range(1, 7), {1: 9.0, 2: 0.9})
    saving.wait()
    assert [(c.step, c.score) for c in store.checkpoints()] == [(2, 0.9), (4, 0.0), (6, 0.0)]


@pytest.mark.parametrize(
    "seen", [report(1, 5.0), report(2, float("nan")), report(2, float("inf")), report(2, 5.0, is_finite=False)]
)
def test_a_score_of_another_update_or_none_is_no_score(writer, learner, store, seen):
    saving = writer()
    learner.step = 2
    saving.saw(seen)
    saving.save(learner, Cursor(learner))
    saving.wait()
    assert saving.newest.score is None


# --- in the background


def test_training_does_not_wait_for_what_is_written(writer, learner, store):
    saving = writer()
    learner.go_on.clear()
    train(saving, learner, range(1, 4))  # the save of 2 is running, and 3 is done
    assert store.checkpoints() == []
    learner.go_on.set()
    saving.wait()
    assert saving.newest.step == 2
    assert store.read_state(saving.newest)["rollouts"] == {"next_draw_index": 32}, "as it was when the save began"


def test_a_save_waits_for_the_one_before(writer, learner, store):
    saving = writer(checkpoint_every=1)
    learner.go_on.clear()
    train(saving, learner, [1])
    loop = threading.Thread(target=train, args=(saving, learner, [2]), daemon=True)
    loop.start()
    loop.join(0.2)
    assert loop.is_alive(), "it waits"
    assert len(learner.urls) == 1
    learner.go_on.set()
    loop.join(LIMIT_S)
    saving.wait()
    assert [c.step for c in store.checkpoints()] == [1, 2]


def test_waiting_with_nothing_to_wait_for_is_no_error(writer):
    saving = writer()
    saving.wait()
    saving.settle()
    assert saving.newest is None


# --- failures


def test_one_failed_save_is_told_and_counted_and_the_run_goes_on(writer, learner, store, warnings):
    saving = writer()
    train(saving, learner, [1, 2])
    saving.wait()
    learner.fails = CheckpointError("no room")
    train(saving, learner, [3, 4])
    saving.settle()
    learner.fails = None
    train(saving, learner, [5, 6])
    saving.wait()
    [warning] = warnings
    assert "checkpoint of step 4 failed: CheckpointError: no room; the newest checkpoint is" in warning
    assert "step_000002" in warning
    assert saving.failures == 1
    assert [c.step for c in store.checkpoints()] == [2, 6]


@pytest.mark.parametrize("notices", ["due", "save"])
def test_two_failed_saves_in_a_row_end_the_run(writer, learner, warnings, notices):
    saving = writer()
    learner.fails = OSError("the network is gone")
    train(saving, learner, [2])
    saving.settle()
    learner.step = 4
    saving.save(learner, Cursor(learner))

    def until_the_failure_is_known():
        while True:
            saving.save(learner, Cursor(learner)) if notices == "save" else saving.due(5)

    with pytest.raises(CheckpointError, match=r"step 4 failed: OSError: the network is gone; .* none at all"):
        until_the_failure_is_known()
    assert len(warnings) == 1
    assert saving.failures == 2


def test_failures_with_a_success_between_do_not_add_up(writer, learner, warnings):
    saving = writer(updates=9, checkpoint_every=1)
    for step in range(1, 7):
        learner.fails = OSError("now and then") if step % 2 else None
        train(saving, learner, [step])
    saving.wait()
    assert saving.failures == len(warnings) == 3
    assert saving.newest.step == 6


def test_a_failure_of_the_last_save_is_an_error(writer, learner, warnings):
    saving = writer()
    learner.fails = CheckpointError("no room")
    train(saving, learner, [6])
    with pytest.raises(CheckpointError, match="step 6 failed: CheckpointError: no room"):
        saving.wait()
    saving.wait()  # said once
    assert warnings == []


def test_a_place_that_cannot_be_had_is_a_failed_save(tmp_path, learner, warnings, metrics):
    (tmp_path / "file").write_text("in the way")
    saving = CheckpointWriter(
        CheckpointStore(str(tmp_path / "file" / "checkpoints"), keep_last=1, keep_best=0),
        PPOConfig(data=["texts"], updates=6),
        settings=dict,
        save_timeout_s=LIMIT_S,
        warn=warnings.append,
        metrics=metrics,
    )
    train(saving, learner, [6])
    with pytest.raises(CheckpointError, match="file"):
        saving.wait()
    assert learner.urls == []
    saving.close()


def test_a_learner_that_died_is_no_matter_of_storage(writer, learner, warnings):
    """Whoever watches over the learner hears of it, not after two checkpoints but at once."""
    saving = writer()
    asked = saving.request()
    learner.step, learner.fails = 1, MemberFailedError("the learner died in snapshot")
    with pytest.raises(MemberFailedError, match="died in snapshot"):
        saving.save(learner, Cursor(learner))
    with pytest.raises(MemberFailedError):
        asked.result(LIMIT_S)
    assert (saving.failures, warnings) == (0, [])
    learner.fails = None
    train(saving, learner, [6])
    saving.wait()
    assert saving.newest.step == 6


def test_a_failed_save_leaves_nothing_behind(writer, learner, store):
    saving = writer()
    learner.fails = CheckpointError("no room")
    train(saving, learner, [2])
    saving.settle()
    assert Folder.at(store.url).names() == []


def test_a_save_that_takes_too_long_is_given_up_and_cannot_come_back(writer, learner, store, warnings):
    saving = writer(save_timeout_s=0.1)
    learner.go_on.clear()
    train(saving, learner, [2])
    saving.settle()
    [warning] = warnings
    assert "step 2 failed: it was not written within 0.1 s (learner.save_timeout_s)" in warning
    other, saving = SlowLearner(), writer()
    train(saving, other, [4])
    saving.wait()
    learner.go_on.set()
    learner._writer.shutdown(wait=True)
    train(saving, other, [6])
    saving.wait()
    assert [c.step for c in store.checkpoints()] == [4, 6]
    assert len(Folder.at(store.url).names()) == 2


def test_a_save_that_was_given_up_does_no_harm_to_a_later_one_of_the_same_step(writer, learner, store, warnings):
    """A learner that hung wakes up while its successor, which has reached the same step, writes."""
    saving = writer(save_timeout_s=0.1)
    learner.go_on.clear()
    train(saving, learner, [2])
    saving.settle()
    other = SlowLearner()
    other.lineage = 1
    other.go_on.clear()
    saving._save_timeout_s = LIMIT_S
    train(saving, other, [2])
    learner.go_on.set()
    learner._writer.shutdown(wait=True)
    saving._executor.submit(int).result(LIMIT_S)  # what the first one left has been looked at
    other.go_on.set()
    saving.wait()
    assert [(c.step, c.lineage) for c in store.checkpoints()] == [(2, 1)]


def test_a_save_that_is_late_is_noticed_without_a_save_that_waits_for_it(writer, learner, warnings):
    saving = writer(save_timeout_s=0.05, checkpoint_every=0, updates=1000)
    learner.go_on.clear()
    learner.step = 1
    saving.save(learner, Cursor(learner))
    while not warnings:
        assert not saving.due(2)
    learner.go_on.set()
    assert "not written within" in warnings[0]


# --- asked for


def test_a_checkpoint_that_is_asked_for_comes_after_the_current_update(writer, learner):
    saving = writer(checkpoint_every=0)
    assert train(saving, learner, [1]) == []
    asked = [saving.request(), saving.request()]
    assert train(saving, learner, [2, 3]) == [2]
    checkpoints = [future.result(LIMIT_S) for future in asked]
    assert [c.step for c in checkpoints] == [2, 2]
    saving.wait()
    assert saving.newest == checkpoints[0]


def test_who_asks_is_answered_without_the_training_thread(writer, learner):
    saving = writer()
    asked = saving.request()
    learner.go_on.clear()
    train(saving, learner, [1])
    answer: Future = Future()
    threading.Thread(target=lambda: answer.set_result(asked.result(LIMIT_S)), daemon=True).start()
    learner.go_on.set()
    assert answer.result(LIMIT_S).step == 1


def test_who_asks_is_told_of_a_failure(writer, learner):
    saving = writer()
    asked = saving.request()
    learner.fails = CheckpointError("no room")
    train(saving, learner, [1])
    with pytest.raises(CheckpointError, match="no room"):
        asked.result(LIMIT_S)


def test_who_no_longer_waits_does_no_harm(writer, learner):
    saving = writer()
    gone, asked = saving.request(), saving.request()
    assert gone.cancel()
    train(saving, learner, [1])
    assert asked.result(LIMIT_S).step == 1


def test_who_asks_too_late_is_told_so(writer, learner):
    saving = writer()
    train(saving, learner, [6])
    saving.wait()
    asked = saving.request()
    saving.close()
    with pytest.raises(CheckpointError, match=r"training has ended; the newest checkpoint is \S*step_000006"):
        asked.result(LIMIT_S)


def test_metrics_are_told_of_every_save_and_of_what_is_gone_back_to(writer, learner, store, metrics):
    def value(name, **labels):
        return metrics.registry.get_sample_value(f"minichatgpt_checkpoint_{name}", labels)

    saving = writer()
    train(saving, learner, [2, 4])
    saving.wait()
    first, newest = store.checkpoints()[-2:]
    assert value("step") == newest.step == 4
    assert value("time_seconds") == newest.written_at
    assert value("bytes") == sum(file.size_bytes for file in newest.files.values())
    assert value("seconds_count", part="snapshot") == value("seconds_count", part="write") == 2
    saving.go_back_to(first)
    assert value("step") == 2
    learner.fails = OSError("no room")
    train(saving, learner, [4])
    saving.settle()
    assert value("failures_total") == 1
    assert value("seconds_count", part="write") == 2
