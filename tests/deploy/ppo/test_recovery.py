"""The learner is lost: another one goes on from the newest checkpoint as a new lineage, as if nothing had happened."""

import pytest

from common.errors import CheckpointError, CorruptWeightsError, DataError, LearnerLostError
from common.hashing import file_hash
from deploy.ppo.conductor import Conductor
from deploy.run_folder.files import read_json

EVERY_TWO = ("ppo.checkpoint_every=2", "ppo.keep_last=3")


def test_corrupt_weights_send_the_run_back_to_the_newest_checkpoint_as_a_new_lineage(train, undisturbed, poison):
    poison(4)
    outcome = train(*EVERY_TWO).ok()
    outcome.assert_same_as(undisturbed(*EVERY_TWO))
    assert [row["identity"] for row in outcome.rows()] == ["0.1", "0.2", "1.3", "1.4", "1.5", "1.6"]
    assert [event for event, _ in outcome.events()] == ["learner_lost", "resumed"]
    (_, lost), (_, resumed) = outcome.events()
    assert "the learner in update: weights or optimizer state" in lost
    assert resumed == "training goes on from step_000002, as lineage 1"
    assert outcome.checkpoints() == ["step_000002", "step_000004", "step_000006"]


def test_what_dead_weights_were_trained_on_counts_as_rolled_back(train, poison):
    poison(4)
    outcome = train(*EVERY_TWO).ok()
    kept = read_json(outcome.folder / "ledger.json")
    assert kept["lineage"] == 1
    ledger = kept["ledger"]
    assert ledger == outcome.rows()[-1]["ledger"]
    # Update 3 was trained on, and the batch of update 4 was buffered: both came a second time.
    assert (ledger["rolled_back"], ledger["dispatched"], ledger["trained"]) == (64, 8 * 32, 6 * 32)
    assert (ledger["buffered"], ledger["in_flight"], ledger["duplicates"], ledger["dropped"]) == (0, 0, 0, {})
    assert [row["ledger"]["rolled_back"] for row in outcome.rows()] == [0, 0, 64, 64, 64, 64]


def test_without_a_checkpoint_the_run_goes_back_to_the_policy_before_ppo(train, undisturbed, poison):
    poison(3)
    outcome = train("ppo.checkpoint_every=0").ok()
    outcome.assert_same_as(undisturbed("ppo.checkpoint_every=0"))
    assert {row["identity"].split(".")[0] for row in outcome.rows()} == {"1"}
    assert ("resumed", "training goes on from the start, as lineage 1") in outcome.events()
    assert outcome.ledger()["rolled_back"] == 3 * 32


def test_it_may_happen_more_than_once(train, undisturbed, poison):
    poison(5, times=2)
    outcome = train(*EVERY_TWO).ok()
    outcome.assert_same_as(undisturbed(*EVERY_TWO))
    assert [row["identity"] for row in outcome.rows()] == ["0.1", "0.2", "0.3", "0.4", "2.5", "2.6"]
    assert outcome.ledger()["rolled_back"] == 2 * 32


def test_a_learner_that_is_lost_again_and_again_ends_the_run_and_its_checkpoint_is_named(train, poison):
    poison(4, times=100)
    outcome = train(*EVERY_TWO, "learner.max_restarts=1")
    with pytest.raises(LearnerLostError, match=r"It was started again 1 times within 600 s \(learner\.max_restarts"):
        outcome.ok()
    (note,) = outcome.error.__notes__
    assert note.startswith("Stopped after update 3 of 6. A checkpoint of it could not be written: weights or optimizer")
    assert note.endswith("Checkpoint step_000002 is kept; the same command, without --again ppo, goes on from it")
    assert outcome.checkpoints() == ["step_000002"], "corrupt weights are never saved"
    assert not (outcome.folder / "stages" / "ppo.json").exists()
    cause = outcome.error.__cause__.__cause__
    assert isinstance(cause, CorruptWeightsError)


def test_an_update_that_was_not_booked_is_not_saved_for_its_samples_would_come_again(train, undisturbed, monkeypatch):
    account = Conductor.account

    def broken(conductor, report):
        if report.step == 3:
            raise DataError("the disk is full")
        account(conductor, report)

    with monkeypatch.context() as patched:
        patched.setattr(Conductor, "account", broken)
        outcome = train(*EVERY_TWO)
    with pytest.raises(DataError, match="the disk is full"):
        outcome.ok()
    (note,) = outcome.error.__notes__
    assert note.startswith("Stopped after update 3 of 6. The samples of that update are not booked, so that it is done")
    assert outcome.checkpoints() == ["step_000002"]
    again = train(*EVERY_TWO).ok()
    again.assert_same_as(undisturbed(*EVERY_TWO))
    assert again.ledger()["trained"] == 6 * 32


def test_the_same_command_then_goes_on_from_it(train, undisturbed, poison):
    poison(4, times=2)
    train(*EVERY_TWO, "learner.max_restarts=1")
    outcome = train(*EVERY_TWO).ok()
    outcome.assert_same_as(undisturbed(*EVERY_TWO))
    assert [row["identity"] for row in outcome.rows()] == ["0.1", "0.2", "2.3", "2.4", "2.5", "2.6"]


@pytest.fixture
def damage_before(tmp_path, until):
    """An interference: once, before the named update, a bit flips in the newest checkpoint, which is of `step`."""

    def build(update, *, step):
        damaged = []

        def interfere(controls, number):
            if number == update and not damaged:
                until(lambda: (found := controls.status().newest_checkpoint) and found.step == step)
                damaged.append(tmp_path / "run" / "checkpoints" / f"step_{step:06d}" / "learner.safetensors")
                content = bytearray(damaged[0].read_bytes())
                content[len(content) // 2] ^= 1
                damaged[0].write_bytes(content)

        return interfere

    return build


def test_a_damaged_newest_checkpoint_is_passed_over_and_told(train, undisturbed, poison, damage_before):
    poison(6)
    damage, newest = damage_before(6, step=4), []

    def interfere(controls, number):
        damage(controls, number)
        if (status := controls.status()).lineage == 1 and number == 3:
            newest.append(status.newest_checkpoint.step)

    outcome = train(*EVERY_TWO, before_update=interfere).ok()
    outcome.assert_same_as(undisturbed(*EVERY_TWO))
    assert newest == [2], "status names the one that was gone back to"
    assert [row["identity"] for row in outcome.rows()] == ["0.1", "0.2", "1.3", "1.4", "1.5", "1.6"]
    [told] = [text for event, text in outcome.events() if event == "checkpoint_damaged"]
    assert "step_000004/learner.safetensors is damaged" in told
    assert [name[:11] for name in outcome.checkpoints()] == ["step_000002", "step_000004", "step_000006"]
    assert "step_000004" not in outcome.checkpoints(), "the damaged one is gone, another has its place"


def test_where_every_checkpoint_is_damaged_the_run_ends_and_nothing_is_deleted(train, poison, damage_before):
    """To go on from the start would throw away what somebody may still mend."""
    poison(6)
    only_one = ("ppo.checkpoint_every=2", "ppo.keep_last=1", "ppo.keep_best=0")
    outcome = train(*only_one, before_update=damage_before(6, step=4))
    with pytest.raises(CheckpointError, match=r"no checkpoint in .* is whole: .*step_000004/learner\.safetensors is"):
        outcome.ok()
    assert "Nothing can be gone on from: no checkpoint in" in outcome.error.__notes__[0]
    assert outcome.checkpoints() == ["step_000004"]
    assert len(outcome.rows()) == 5
    before = outcome.files()
    again = train(*only_one)
    with pytest.raises(CheckpointError, match=r"put one back, or start anew with `--again ppo`"):
        again.ok()
    assert again.files() == before


@pytest.mark.parametrize("name", ["metrics.jsonl", "ledger.json"])
def test_a_run_folder_that_takes_nothing_more_ends_the_run_with_a_checkpoint_and_the_reason(
    train, undisturbed, tmp_path, name
):
    def fill(controls, number):
        """As if the disk were full, for one file of the driver's two threads."""
        path = tmp_path / "run" / name
        if number == 4:
            path.rename(path.with_suffix(".kept"))
            path.mkdir()

    stopped = train("ppo.checkpoint_every=0", before_update=fill)
    with pytest.raises(DataError, match=rf"{name} cannot be written: .* mend that, and give the same command again"):
        stopped.ok()
    (note,) = stopped.error.__notes__
    assert "Checkpoint step_000004 is kept" in note
    (tmp_path / "run" / name).rmdir()
    (tmp_path / "run" / name).with_suffix(".kept").rename(tmp_path / "run" / name)
    resumed = train("ppo.checkpoint_every=0").ok()
    assert resumed.rows()[-1]["step"] == 6
    assert file_hash(resumed.folder / "models/ppo/model.safetensors") == file_hash(
        undisturbed("ppo.checkpoint_every=0").folder / "models/ppo/model.safetensors"
    )
