"""The loop on one page: what it calls, in which order, and when it checkpoints."""

from pathlib import Path

import pytest

from common.errors import NonFiniteError
from common.records import ChunkHandle, Identity, Stats, UpdateReport, WeightsHandle
from learner.loop import due, train


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
            raise NonFiniteError("no step was finite")
        self.step += 1
        draws = tuple((d, 0) for chunk in chunks for d in chunk.draw_indices)
        assert all(chunk.rollouts == self.step - 1 for chunk in chunks), "trained on samples of other weights"
        self.diary.append(("update", self.step, len(draws)))
        return UpdateReport(self.step, Identity(0, self.step), draws, {}, {})

    def save(self, folder: Path):
        self.diary.append(("save", folder.name))


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

    def save(self, learner):
        learner.save(Path(f"step_{learner.step}"))


def run(config, *, step=0, fails_at=None):
    diary = Diary()
    rollouts = CountingRollouts(diary)
    learner = CountingLearner(diary, step, fails_at)
    try:
        train(
            learner=learner, rollouts=rollouts, recorder=Notebook(diary), checkpoints=Shelf(), config=config
        )  # fmt: skip
    finally:
        diary.append(("open", rollouts.open))
    return diary


def test_two_updates_in_order(ppo_config):
    assert run(ppo_config(updates=2)) == [
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
        ("save", "step_2"),
        ("open", 0),
    ]


@pytest.mark.parametrize(("every", "saved"), [(0, [5]), (1, [1, 2, 3, 4, 5]), (2, [2, 4, 5]), (5, [5]), (7, [5])])
def test_checkpoints_are_written_when_due_and_once_at_the_end(ppo_config, every, saved):
    diary = run(ppo_config(updates=5, checkpoint_every=every))
    assert [event for event in diary if event[0] == "save"] == [("save", f"step_{s}") for s in saved]


def test_a_learner_that_has_done_updates_does_only_the_rest(ppo_config):
    """Trap 24: steps done are steps asked for."""
    diary = run(ppo_config(updates=5), step=3)
    assert diary[0] == ("publish", 3)
    assert [event[1] for event in diary if event[0] == "update"] == [4, 5]


def test_a_learner_that_is_done_does_nothing_but_publish(ppo_config):
    assert run(ppo_config(updates=5), step=5) == [("publish", 5), ("open", 0)]


def test_a_failed_update_ends_the_loop_and_publishes_nothing_more(ppo_config):
    """Trap 27: no publish of an update that did not happen."""
    diary = Diary()
    with pytest.raises(NonFiniteError):
        train(
            learner=CountingLearner(diary, fails_at=2),
            rollouts=CountingRollouts(diary),
            recorder=Notebook(diary),
            checkpoints=Shelf(),
            config=ppo_config(updates=5, checkpoint_every=1),
        )
    assert diary[-3:] == [("record", 1), ("save", "step_1"), ("collect", 16)]


def test_due_counts_whole_periods_and_zero_is_never():
    assert [step for step in range(1, 10) if due(step, 3)] == [3, 6, 9]
    assert not any(due(step, 0) for step in range(10))
    assert all(due(step, 1) for step in range(1, 10))
