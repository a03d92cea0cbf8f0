"""The loop on one page: what it calls, in which order, and that it checkpoints when it is told to."""

import pytest

from common.errors import NonFiniteError
from common.records import ChunkHandle, Identity, Stats, UpdateReport, WeightsHandle
from learner.loop import train


class Diary(list):
    """What happened, in order."""


class CountingLearner:
    """A learner whose weights are a number: the updates behind them."""

    def __init__(self, diary, step=0, fails_at=None):
        self.diary, self.step, self._fails_at = diary, step, fails_at

    def weights(self):
        return WeightsHandle(Identity(0, self.step), self.step, self.step, ())

    def update(self, chunks):
        if self.step + 1 == self._fails_at:
            return UpdateReport(self.step, Identity(0, self.step), (), {}, {}, is_finite=False)
        self.step += 1
        draws = tuple((d, 0) for chunk in chunks for d in chunk.draw_indices)
        assert all(chunk.rollouts == self.step - 1 for chunk in chunks), "trained on samples of other weights"
        self.diary.append(("update", self.step, len(draws)))
        return UpdateReport(self.step, Identity(0, self.step), draws, {}, {})


class CountingRollouts:
    """Samples that say which weights they come from."""

    def __init__(self, diary):
        self.diary, self._weights, self._next, self.open = diary, None, 0, 0

    def publish(self, weights):
        self._weights = weights.ref
        self.diary.append(("publish", weights.identity.step))

    def collect(self, num_samples):
        draws = tuple(range(self._next, self._next + num_samples))
        self._next += num_samples
        self.open += num_samples
        self.diary.append(("collect", num_samples))
        half = num_samples // 2
        return [
            ChunkHandle(i, part, self._weights, None, None, Stats(), Stats())
            for i, part in enumerate((draws[:half], draws[half:]))
        ]

    def account(self, report):
        self.open -= len(report.trained)
        self.diary.append(("account", report.step))


class Notebook:
    """A recorder that remembers steps."""

    def __init__(self, diary):
        self.diary = diary

    def record(self, report):
        self.diary.append(("record", report.step))


class Shelf:
    """Checkpoints that are only noted down."""

    def __init__(self, diary, due=()):
        self.diary, self._due = diary, due

    def due(self, step):
        return step in self._due

    def save(self, learner, rollouts):
        self.diary.append(("save", learner.step, rollouts.open))

    def wait(self):
        self.diary.append(("wait",))


def run(config, *, step=0, fails_at=None, due=()):
    diary = Diary()
    rollouts = CountingRollouts(diary)
    learner = CountingLearner(diary, step, fails_at)
    try:
        train(
            learner=learner, rollouts=rollouts, recorder=Notebook(diary), checkpoints=Shelf(diary, due), config=config
        )  # fmt: skip
    finally:
        diary.append(("open", rollouts.open))
    return diary


def test_two_updates_in_order(ppo_config):
    assert run(ppo_config(updates=2), due=(2,)) == [
        ("publish", 0),
        ("collect", 16),
        ("update", 1, 16),
        ("account", 1),
        ("publish", 1),
        ("record", 1),
        ("collect", 16),
        ("update", 2, 16),
        ("account", 2),
        ("publish", 2),
        ("record", 2),
        ("save", 2, 0),
        ("wait",),
        ("open", 0),
    ]


def test_checkpoints_are_written_when_due_after_the_samples_are_accounted_for(ppo_config):
    diary = run(ppo_config(updates=5), due=(1, 4))
    assert [event for event in diary if event[0] == "save"] == [("save", 1, 0), ("save", 4, 0)]


def test_a_learner_that_has_done_updates_does_only_the_rest(ppo_config):
    """Trap 24: steps done are steps asked for."""
    diary = run(ppo_config(updates=5), step=3)
    assert diary[0] == ("publish", 3)
    assert [event[1] for event in diary if event[0] == "update"] == [4, 5]


def test_a_learner_that_is_done_does_nothing_but_publish(ppo_config):
    assert run(ppo_config(updates=5), step=5) == [("publish", 5), ("wait",), ("open", 0)]


def test_a_failed_update_ends_the_loop_and_publishes_nothing_more(ppo_config):
    """Trap 27: no publish of an update that did not happen."""
    diary = Diary()
    with pytest.raises(NonFiniteError, match=r"update 2: no optimizer step was finite; weights 0\.1 are as they were"):
        train(
            learner=CountingLearner(diary, fails_at=2),
            rollouts=CountingRollouts(diary),
            recorder=Notebook(diary),
            checkpoints=Shelf(diary, due=(1,)),
            config=ppo_config(updates=5),
        )
    assert diary[-3:] == [("record", 1), ("save", 1, 0), ("collect", 16)]
