"""A run that was cut off goes on from its newest checkpoint, and leaves what one that was not cut off leaves."""

import shutil

import pytest

from common.checkpoint_store import CheckpointStore
from common.errors import CheckpointError, RunStopped
from deploy import pipeline
from deploy.ppo.resume import run_settings
from deploy.run_folder.files import read_json

EVERY_TWO = ("ppo.checkpoint_every=2", "ppo.keep_last=3")


def stop_before(update):
    """Ask for the end while the batch of an update is there; the update is finished, and no other begun."""

    def interfere(controls, number):
        if number == update:
            controls.stop("enough")

    return interfere


def die_before(update):
    """End it at once, as a second Ctrl-C does: nothing is rescued."""

    def interfere(controls, number):
        if number == update:
            raise KeyboardInterrupt

    return interfere


@pytest.mark.parametrize("update", [1, 3, 4, 6])
def test_a_run_that_is_stopped_after_any_update_and_resumed_leaves_what_an_undisturbed_one_does(
    train, undisturbed, update
):
    stopped = train(*EVERY_TWO, before_update=stop_before(update))
    assert isinstance(stopped.error, RunStopped) == (update < 6), "after the last update nothing is left to stop"
    if update < 6:
        assert len(stopped.rows()) == update
        assert stopped.checkpoints()[-1] == f"step_{update:06d}"
        assert stopped.ledger()["dispatched"] == 32 * update
    resumed = train(*EVERY_TWO).ok()
    resumed.assert_same_as(undisturbed(*EVERY_TWO))
    assert [row["identity"].split(".")[0] for row in resumed.rows()] == ["0"] * update + ["1"] * (6 - update)
    assert resumed.ledger()["dispatched"] == 6 * 32, "nothing came twice"


@pytest.mark.parametrize(("update", "kept"), [(2, 0), (4, 2), (6, 4)])
def test_a_run_that_is_cut_off_loses_what_came_after_its_newest_checkpoint_and_does_it_again(
    train, undisturbed, update, kept
):
    cut = train(*EVERY_TWO, before_update=die_before(update))
    assert isinstance(cut.error, KeyboardInterrupt)
    assert len(cut.rows()) == update - 1
    resumed = train(*EVERY_TWO).ok()
    resumed.assert_same_as(undisturbed(*EVERY_TWO))
    ledger = resumed.ledger()
    assert [row["identity"].split(".")[0] for row in resumed.rows()] == ["0"] * kept + ["1"] * (6 - kept)
    assert ledger["rolled_back"] == 32 * (update - kept), "also those that were dispatched after the checkpoint"
    assert ledger["dispatched"] == 6 * 32 + ledger["rolled_back"]


def test_a_run_may_be_cut_off_again_and_again(train, undisturbed):
    for update in (2, 4, 5, 5, 6):
        train(*EVERY_TWO, before_update=die_before(update))
    resumed = train(*EVERY_TWO).ok()
    resumed.assert_same_as(undisturbed(*EVERY_TWO))
    lineages = [int(row["identity"].split(".")[0]) for row in resumed.rows()]
    assert lineages == sorted(lineages)
    assert read_json(resumed.folder / "ledger.json")["lineage"] == 5, "each attempt is a lineage"


def test_a_run_that_was_cut_off_while_its_last_lines_were_written_goes_on(train, undisturbed):
    cut = train(*EVERY_TWO, before_update=die_before(4))
    with (cut.folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "metr')
    (cut.folder / "trajectories" / "update_000004.partial").write_bytes(b"half")
    train(*EVERY_TWO).ok().assert_same_as(undisturbed(*EVERY_TWO))


def test_at_the_very_end_nothing_more_is_trained_and_it_is_said(train, undisturbed):
    whole = train(*EVERY_TWO).ok()
    rows, model = whole.rows(), whole.folder / "models" / "ppo" / "model.safetensors"
    weights = model.read_bytes()
    (whole.folder / "stages" / "ppo.json").unlink()  # as if it had been cut off while it wrote its record
    shutil.rmtree(whole.folder / "models" / "ppo")

    def fail(controls, number):
        raise AssertionError(f"update {number} was trained")

    again = train(*EVERY_TWO, before_update=fail).ok()
    assert "ppo: all 6 updates are done already; nothing more is trained" in again.output
    assert again.rows() == rows
    assert model.read_bytes() == weights
    assert again.ledger()["dispatched"] == 6 * 32
    record = read_json(again.folder / "stages" / "ppo.json")
    assert (record["metrics"]["updates"], record["metrics"]["trajectories"]) == (6, 192)
    again.assert_same_as(undisturbed(*EVERY_TWO))


def test_a_run_goes_on_for_longer_with_other_settings_that_change_no_result(train, undisturbed):
    train("ppo.updates=3").ok()
    longer = train("ppo.updates=6", "rollout.workers=1", "ppo.checkpoint_every=1", "ppo.keep_last=1").ok()
    longer.assert_same_as(undisturbed(*EVERY_TWO))
    assert [row["identity"] for row in longer.rows()][2:4] == ["0.3", "1.4"]


def test_a_run_whose_learning_rate_falls_until_the_last_update_goes_on_for_no_longer(train):
    falling = "ppo.lr_final_fraction=0.1"
    train(falling, "ppo.updates=3").ok()
    outcome = train(falling, "ppo.updates=6")
    assert "ppo.updates: 3 in the checkpoint, 6 now" in str(outcome.error)


def test_checkpoints_may_be_in_an_object_store(train, undisturbed, request):
    url = f"memory://beginning/{request.node.name}"
    settings = (*EVERY_TWO, f"ppo.checkpoint_url={url}")
    store = CheckpointStore(url, keep_last=3, keep_best=0)
    stopped = train(*settings, before_update=stop_before(3))
    assert isinstance(stopped.error, RunStopped)
    assert [checkpoint.step for checkpoint in store.checkpoints()] == [2, 3]
    assert "Checkpoint step_000003-" in str(stopped.error)
    resumed = train(*settings).ok()
    resumed.assert_same_as(undisturbed(*EVERY_TWO))
    assert [checkpoint.step for checkpoint in store.checkpoints()] == [3, 4, 6]
    assert resumed.checkpoints() == ["step_000003"], "in the run folder lies what lay there before"


def test_ppo_anew_takes_nothing_from_checkpoints(train, undisturbed):
    train(*EVERY_TWO, before_update=die_before(5))
    anew = train(*EVERY_TWO, again=True).ok()
    anew.assert_same_as(undisturbed(*EVERY_TWO))
    assert {row["identity"].split(".")[0] for row in anew.rows()} == {"0"}
    assert anew.ledger() == undisturbed(*EVERY_TWO).ledger()


def test_checkpoints_that_are_gone_are_missed_and_nothing_is_thrown_away(train):
    stopped = train(*EVERY_TWO, before_update=die_before(4))
    folder = stopped.folder
    (folder / "checkpoints").rename(folder / "elsewhere")
    refused = train(*EVERY_TWO)
    assert isinstance(refused.error, CheckpointError)
    assert "there was a checkpoint of update 2" in str(refused.error)
    assert len(refused.rows()) == 3, "the files are as they were"
    assert train(*EVERY_TWO, f"ppo.checkpoint_url={folder / 'elsewhere'}").ok().rows()[-1]["step"] == 6


def test_a_checkpoint_from_before_there_was_a_setting_is_gone_on_from_and_it_is_told(train, undisturbed, monkeypatch):
    new = "ppo.clip_eps_high"
    with monkeypatch.context() as older:
        settings = run_settings
        older.setattr(
            pipeline, "run_settings", lambda *of: {key: value for key, value in settings(*of).items() if key != new}
        )
        train(*EVERY_TWO, before_update=die_before(4))
    refused = train(*EVERY_TWO, f"{new}=0.3")
    assert f"{new}: not there in the checkpoint, 0.3 now" in str(refused.error)
    resumed = train(*EVERY_TWO).ok()
    assert f"from before there were these settings, and they are at their defaults: {new}=null" in " ".join(
        resumed.output.split()
    )
    resumed.assert_same_as(undisturbed(*EVERY_TWO))
