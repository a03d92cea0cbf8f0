"""The loop on one page: what it calls, in which order, what it does with a step that is not finite, or lost chunks."""

import pytest

from common.errors import LearnerLostError
from common.records import ChunkHandle, Identity, Stats, UpdateReport, WeightsHandle
from learner.loop import train


class Diary(list):
    """What happened, in order."""


class CountingLearner:
    """A learner whose weights are a number: the updates behind them.

    Args:
        infinite: how many calls of `update` have no finite step, by the step that they are at.
        lost: positions of lost chunks, one list for each call of `prepare`.
    """

    def __init__(self, diary, step=0, *, dies_at=None, infinite=None, lost=()):
        self.diary, self.step = diary, step
        self._dies_at, self._infinite, self._lost = dies_at, dict(infinite or {}), list(lost)
        self._prepared = ()

    def weights(self):
        return WeightsHandle(Identity(0, self.step), self.step, self.step, ())

    def prepare(self, chunks):
        self._prepared = chunks
        lost = self._lost.pop(0) if self._lost else []
        if lost:
            self.diary.append(("lost", lost))
        return lost

    def update(self, settings):
        assert settings == ("settings of", self.step), "trained with other settings than those of this update"
        if self.step + 1 == self._dies_at:
            raise LearnerLostError("it died")
        draws = tuple((d, 0) for chunk in self._prepared for d in chunk.draw_indices)
        assert all(chunk.rollouts == self.step for chunk in self._prepared), "trained on samples of other weights"
        if self._infinite.get(self.step, 0):
            self._infinite[self.step] -= 1
            return UpdateReport(self.step, Identity(0, self.step), (), {}, {}, is_finite=False)
        self.step += 1
        self.diary.append(("update", self.step, len(draws)))
        return UpdateReport(self.step, Identity(0, self.step), draws, {}, {})


class CountingRollouts:
    """Samples that say which weights they come from."""

    def __init__(self, diary):
        self.diary, self._weights, self._next, self.open = diary, None, 0, 0

    def publish(self, weights):
        self._weights = weights.ref
        self.diary.append(("publish", weights.identity.step))

    def collect(self, num_samples, settings):
        assert settings == ("settings of", self._weights), "collected with settings of another update"
        draws = tuple(range(self._next, self._next + num_samples))
        self._next += num_samples
        self.open += num_samples
        self.diary.append(("collect", num_samples))
        half = num_samples // 2
        return [
            ChunkHandle(i, part, self._weights, None, None, Stats(), Stats())
            for i, part in enumerate((draws[:half], draws[half:]))
        ]

    def regenerate(self, chunks, lost):
        self.diary.append(("regenerate", list(lost)))
        return chunks

    def account(self, report):
        self.open -= len(report.trained)
        self.diary.append(("account", report.step))


class Notebook:
    """A recorder that remembers steps."""

    def __init__(self, diary):
        self.diary = diary

    def record(self, report):
        self.diary.append(("record", report.step))


class Wheel:
    """Steering that says, as settings, the step at which it was asked."""

    def at(self, step):
        return ("settings of", step)


class Exam:
    """Evaluations that are only noted down, every so many updates."""

    def __init__(self, diary, every):
        self.diary, self._every = diary, every

    def at(self, step):
        if self._every and step % self._every == 0:
            self.diary.append(("evaluate", step))


class Shelf:
    """Checkpoints that are only noted down."""

    def __init__(self, diary, due=()):
        self.diary, self._due = diary, set(due)

    def due(self, step):
        return step in self._due

    def save(self, learner, rollouts):
        self.diary.append(("save", learner.step))

    def wait(self):
        self.diary.append(("wait",))


def run(config, *, step=0, due=(), every=0, diary=None, **faults):
    diary = Diary() if diary is None else diary
    rollouts = CountingRollouts(diary)
    train(
        learner=CountingLearner(diary, step, **faults),
        rollouts=rollouts,
        recorder=Notebook(diary),
        steering=Wheel(),
        evaluations=Exam(diary, every),
        checkpoints=Shelf(diary, due),
        config=config,
    )
    return diary


def test_two_updates_in_order(ppo_config):
    assert run(ppo_config(updates=2), due={2}) == [
        ("publish", 0),
        ("collect", 16),
        ("update", 1, 16),
        ("account", 1),
        ("record", 1),
        ("publish", 1),
        ("collect", 16),
        ("update", 2, 16),
        ("account", 2),
        ("record", 2),
        ("publish", 2),
        ("save", 2),
        ("wait",),
    ]


def test_what_is_evaluated_is_published_and_not_yet_saved(ppo_config):
    """So that a checkpoint of an update never lacks its evaluation."""
    diary = run(ppo_config(updates=2), every=2, due={2})
    assert diary[:2] == [("publish", 0), ("evaluate", 0)]
    assert diary[-4:] == [("publish", 2), ("evaluate", 2), ("save", 2), ("wait",)]
    assert [event for event in diary if event[0] == "evaluate"] == [("evaluate", 0), ("evaluate", 2)]


def test_a_learner_that_has_done_updates_does_only_the_rest(ppo_config):
    """Trap 24: steps done are steps asked for."""
    diary = run(ppo_config(updates=5), step=3)
    assert diary[0] == ("publish", 3)
    assert [event[1] for event in diary if event[0] == "update"] == [4, 5]


def test_a_learner_that_is_done_does_nothing_but_publish(ppo_config):
    assert run(ppo_config(updates=5), step=5) == [("publish", 5), ("wait",)]


def test_lost_chunks_are_generated_again_until_all_are_there_and_only_then_trained_on(ppo_config):
    diary = run(ppo_config(updates=1), lost=[[1], [0, 1]])
    assert diary[1:7] == [
        ("collect", 16),
        ("lost", [1]),
        ("regenerate", [1]),
        ("lost", [0, 1]),
        ("regenerate", [0, 1]),
        ("update", 1, 16),
    ]


def test_an_update_without_a_finite_step_is_booked_and_recorded_but_never_published(ppo_config):
    """Trap 27: no publish of an update that did not happen."""
    diary = run(ppo_config(updates=2), infinite={1: 2})
    assert [event for event in diary if event[0] != "collect"] == [
        ("publish", 0),
        ("update", 1, 16),
        ("account", 1),
        ("record", 1),
        ("publish", 1),
        ("account", 1),
        ("record", 1),
        ("account", 1),
        ("record", 1),
        ("update", 2, 16),
        ("account", 2),
        ("record", 2),
        ("publish", 2),
        ("wait",),
    ]


def test_a_learner_that_dies_ends_the_loop_and_publishes_nothing_more(ppo_config):
    diary = Diary()
    with pytest.raises(LearnerLostError):
        run(ppo_config(updates=5), dies_at=2, due={1}, diary=diary)
    assert diary[-3:] == [("publish", 1), ("save", 1), ("collect", 16)]
