"""Settings that change while PPO trains: when they count, that a run which is cut off meets them again, and where they
are told.
"""

import pytest
import torch

from common.errors import ConfigError
from common.hashing import file_hash
from deploy.run_status import SettingsRequest
from deploy.settings_journal import read_journal
from learner.ppo import PPOLearner

EVERY_TWO = ("ppo.checkpoint_every=2", "ppo.keep_last=3")
LATER = SettingsRequest(temperature=0.7, learning_rate=5e-4, reason="it swings")


def changing(at, wanted=LATER):
    """An interference: the change is asked for, once, while update `at` - 1 runs, so that update `at` is the first."""
    asked = []

    def interfere(controls, number):
        if number == at - 1 and not asked:
            asked.append(controls.change(wanted))

    return interfere


@pytest.fixture(scope="module")
def same_bytes():
    """Two runs left the same: weights, trajectories, samples, and metrics.jsonl but for seconds and lineage."""

    def compare(mine, theirs):
        mine.assert_same_as(theirs)
        rows = [[(row["step"], row["metrics"], row["settings"]) for row in run.rows()] for run in (mine, theirs)]
        assert rows[0] == rows[1]

    return compare


@pytest.fixture
def changed(train):
    """The run with the change at update 3 and nobody who disturbs it."""
    return train(*EVERY_TWO, name="changed", before_update=changing(3)).ok()


def test_a_change_counts_from_the_next_update_on_and_every_row_says_so(changed, undisturbed):
    before = {"temperature": 1.0, "learning_rate": 1e-3, "kl_coef": 0.1}
    after = {"temperature": 0.7, "learning_rate": 5e-4, "kl_coef": 0.1}
    assert [row["settings"] for row in changed.rows()] == [before] * 2 + [after] * 4
    assert [row["metrics"]["learning_rate"] for row in changed.rows()] == [1e-3] * 2 + [5e-4] * 4
    plain = undisturbed(*EVERY_TWO)
    names = [f"trajectories/update_{step:06d}.safetensors" for step in range(1, 7)]
    same = [file_hash(changed.folder / name) == file_hash(plain.folder / name) for name in names]
    assert same == [True, True, False, False, False, False]
    assert ("settings", "from update 3 on: temperature 1 to 0.7, learning_rate 0.001 to 0.0005 (operator: it swings)"
            ) in changed.events()  # fmt: skip
    [change] = read_journal(changed.folder).changes
    assert (change.at_step, change.who, change.reason, change.lineage) == (2, "operator", "it swings", 0)


@pytest.mark.parametrize("cut_at", [3, 4, 6])
def test_a_run_that_is_cut_off_and_resumed_meets_the_same_settings_at_the_same_updates(
    train, changed, same_bytes, cut_at
):
    """As after kill -9: nothing is saved at the end; the newest checkpoint is of update 2, or 4."""
    change = changing(3)

    def interfere(controls, number):
        change(controls, number)
        if number == cut_at:
            raise KeyboardInterrupt

    cut = train(*EVERY_TWO, before_update=interfere)
    assert isinstance(cut.error, KeyboardInterrupt)
    same_bytes(train(*EVERY_TWO).ok(), changed)


def test_a_change_that_never_came_in_force_before_the_run_was_cut_off_is_not_lost(train, changed, same_bytes):
    change = changing(3)

    def interfere(controls, number):
        change(controls, number)
        if number == 2:
            raise KeyboardInterrupt

    train(*EVERY_TWO, before_update=interfere)
    same_bytes(train(*EVERY_TWO).ok(), changed)


def test_a_learner_that_is_lost_after_a_change_leaves_the_same_bytes(train, changed, same_bytes, poison):
    poison(5)
    outcome = train(*EVERY_TWO, before_update=changing(3)).ok()
    assert outcome.rows()[-1]["identity"] == "1.6"
    same_bytes(outcome, changed)
    assert len(read_journal(outcome.folder).changes) == 1
