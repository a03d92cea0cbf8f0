"""Updates without a finite step in whole runs: their samples are dropped, others come, and too many end the run."""

import pytest
import torch

from common.errors import NonFiniteError
from learner.ppo import PPOLearner
from learner.trajectory_file import read_trajectories


@pytest.fixture
def infinite(monkeypatch):
    """Makes every loss NaN in the update after `step`, as often as asked for."""

    def at(step, *, times):
        update, loss, active = PPOLearner.update, PPOLearner._loss, []

        def counted(learner, trajectories, settings):
            active.append(learner.step == step)
            return update(learner, trajectories, settings)

        def spoiled(learner, *arguments):
            value = loss(learner, *arguments)
            return value * torch.nan if active[-1] and sum(active) <= times else value

        monkeypatch.setattr(PPOLearner, "update", counted)
        monkeypatch.setattr(PPOLearner, "_loss", spoiled)

    return at


def test_an_update_without_a_finite_step_drops_its_samples_and_the_next_draws_are_trained_on(train, infinite):
    infinite(2, times=2)
    outcome = train("ppo.checkpoint_every=0").ok()
    assert [row["step"] for row in outcome.rows()] == [1, 2, 3, 4, 5, 6]
    assert [row["identity"] for row in outcome.rows()] == [f"0.{step}" for step in range(1, 7)]
    ledger = outcome.ledger()
    assert ledger["dropped"] == {"nonfinite_update": 64}
    assert (ledger["dispatched"], ledger["trained"], ledger["buffered"]) == (8 * 32, 6 * 32, 0)
    third = read_trajectories(outcome.folder / "trajectories" / "update_000003.safetensors")
    assert third["draw_index"].tolist() == list(range(4 * 32, 5 * 32)), "two batches were used up in between"
    assert [event for event, _ in outcome.events()] == ["nonfinite_update"] * 2
    assert outcome.checkpoints() == ["step_000006"]


def test_too_many_in_a_row_end_the_run_and_the_last_good_checkpoint_is_named(train, infinite):
    infinite(3, times=100)
    outcome = train("ppo.max_nonfinite_updates=3", "ppo.checkpoint_every=2")
    with pytest.raises(NonFiniteError, match=r"3 updates in a row had no step with a finite loss"):
        outcome.ok()
    [note] = outcome.error.__notes__
    assert note == (
        "Stopped after update 3 of 6. Checkpoint step_000003 is kept; the same command, without --again ppo, goes on "
        "from it"
    ), "what was done well until then is saved"
    assert outcome.ledger()["dropped"] == {"nonfinite_update": 3 * 32}
    assert [row["step"] for row in outcome.rows()] == [1, 2, 3]


def test_a_run_that_could_not_go_on_does_so_once_its_steps_are_finite_again(train, infinite):
    infinite(3, times=3)
    train("ppo.max_nonfinite_updates=3", "ppo.checkpoint_every=2")
    outcome = train("ppo.checkpoint_every=2").ok()
    assert [row["identity"] for row in outcome.rows()] == ["0.1", "0.2", "0.3", "1.4", "1.5", "1.6"]
    ledger = outcome.ledger()
    assert ledger["trained"] == 6 * 32
    assert ledger["dropped"] == {"nonfinite_update": 3 * 32}
