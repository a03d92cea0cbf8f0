"""Replay: every update of a run, recomputed from what it recorded, is the same to the last bit; and what was tampered
with is found out.
"""

import io
import json
import shutil
import sys
from datetime import UTC, datetime

import pytest
from rich.console import Console
from safetensors.numpy import load_file, save_file

from common.errors import CheckpointError, ConfigError, DataError
from common.run_settings import RunSettings
from deploy.cli import main
from deploy.control.run_status import SettingsRequest
from deploy.pipeline import Pipeline
from deploy.ppo.settings_journal import FILE, Journal, Rollback
from deploy.replay.replay import replay
from deploy.run_folder.files import read_json, write_json
from deploy.run_folder.recorded_run import _gone, open_recorded
from learner.ppo import PPOLearner
from learner.trajectory_file import trajectory_path

EVENTFUL = (
    "ppo.checkpoint_every=2",
    "ppo.advantage=rloo",
    "ppo.samples_per_prompt=4",
    "ppo.score_normalization={type='running', subtract_mean=true, decay=0.9}",
    "ppo.reference=shared_trunk",
    "ppo.trainable_layers=1",
    "ppo.kl={type='adaptive', coef=0.2, target=0.5, horizon=200}",
)
CHANGE = SettingsRequest(temperature=0.8, learning_rate=5e-4, kl_target=0.25, reason="it swings")


def quiet(done, total, message):
    """Nobody watches the progress."""


@pytest.fixture(scope="module")
def eventful(train_in, tmp_path_factory):
    """A run with much that an update depends on: groups, normalised scores, a shared trunk, an adaptive KL coefficient;
    settings were changed for update 3, and it was killed in update 6 and went on from update 4. To be read only.
    """
    folder = tmp_path_factory.mktemp("eventful") / "tiny"

    def interfere(controls, number):
        if number == 2:
            controls.change(CHANGE)
        if number == 6:
            raise KeyboardInterrupt

    assert isinstance(train_in(folder, *EVENTFUL, before_update=interfere).error, KeyboardInterrupt)
    return train_in(folder, *EVENTFUL).ok()


@pytest.fixture
def copied(eventful, tmp_path):
    """The eventful run, to be changed."""
    shutil.copytree(eventful.folder, tmp_path / "tiny")
    return tmp_path / "tiny"


def replayed(folder, update, *, from_step=None):
    return replay(open_recorded(folder, from_step=from_step), update, quiet)


def verdicts(found):
    return [(one.update, one.weights, one.largest_metric.difference) for one in found.updates]


def doctor(path, **columns):
    """Change columns of a file of trajectories, each by a function."""
    loaded = load_file(path)
    for name, change in columns.items():
        change(loaded[name])
    save_file(loaded, path)


def rewrite(folder, update, change):
    """Change one line of metrics.jsonl."""
    path = folder / "metrics.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    change(rows[update - 1])
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_every_update_of_an_eventful_run_is_the_same_to_the_last_bit_and_no_file_is_touched(eventful):
    assert [row["identity"] for row in eventful.rows()] == ["0.1", "0.2", "0.3", "0.4", "1.5", "1.6"]
    assert len({row["metrics"]["kl_coef"] for row in eventful.rows()}) == 6, "the controller did not move"
    before = {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in eventful.folder.rglob("*") if path.is_file()
    }
    found = replayed(eventful.folder, 6, from_step=0)
    assert verdicts(found) == [(update, "same", 0.0) for update in range(1, 7)]
    assert [one.tensors is not None for one in found.updates] == [False, False, False, True, False, True]
    assert (found.is_same, found.largest_metric_difference, found.largest_weight_difference) == (True, 0.0, 0.0)
    after = {
        path: (path.stat().st_mtime_ns, path.read_bytes()) for path in eventful.folder.rglob("*") if path.is_file()
    }
    assert after == before


def test_an_update_is_recomputed_from_the_newest_checkpoint_before_it(eventful):
    found = replayed(eventful.folder, 6)
    assert (found.start, found.start_step) == ("step_000004", 4)
    assert verdicts(found) == [(5, "same", 0.0), (6, "same", 0.0)]
    assert replayed(eventful.folder, 4).start_step == 0, "a checkpoint is no start of its own update"


def test_settings_that_were_changed_are_part_of_it(copied):
    (copied / "steering.json").unlink()
    found = replayed(copied, 4, from_step=0)
    assert [one.is_same for one in found.updates] == [True, True, False, False]
    assert found.first_different == 3
    compared = found.updates[2].metrics["learning_rate"]
    assert (compared.recorded, compared.recomputed) == (5e-4, 1e-3)


def test_a_trajectory_that_was_changed_is_found_out(copied):
    def raise_score(scores):
        scores[7] += 0.5

    doctor(trajectory_path(copied / "trajectories", 2), score=raise_score)
    found = replayed(copied, 4)
    assert [one.weights for one in found.updates] == ["same", "differ", "differ", "differ"]
    assert found.first_different == 2
    assert found.updates[1].metrics["score_mean"].difference == pytest.approx(0.5 / 32)
    assert found.largest_weight_difference is None, "no checkpoint of update 2 says by how much"
    at_four = found.updates[3].tensors
    assert at_four.difference > 0
    assert at_four.name.startswith(("model.", "optimizer.", "controller.", "scores."))


def test_a_metric_that_was_changed_is_found_out(copied):
    rewrite(copied, 5, lambda row: row["metrics"].update(policy_loss=row["metrics"]["policy_loss"] + 0.125))
    found = replayed(copied, 6)
    assert found.first_different == 5
    assert (found.updates[0].weights, found.updates[1].is_same) == ("same", True)
    assert found.updates[0].largest_metric.name == "policy_loss"
    assert found.largest_metric_difference == pytest.approx(0.125)
    assert found.largest_weight_difference == 0.0


def test_weights_that_are_not_those_of_the_record_are_found_out(copied):
    rewrite(copied, 5, lambda row: row.update(weights_hash="0123456789abcdef"))
    found = replayed(copied, 5)
    assert (found.updates[0].weights, found.is_same) == ("differ", False)
    assert found.largest_metric_difference == 0.0


def test_a_run_that_recorded_no_hashes_is_compared_by_its_numbers_and_checkpoints(copied):
    for update in (5, 6):
        rewrite(copied, update, lambda row: row.pop("weights_hash"))
    found = replayed(copied, 6)
    assert verdicts(found) == [(5, "not recorded", 0.0), (6, "not recorded", 0.0)]
    assert found.is_same
    assert found.updates[1].tensors.difference == 0


def test_what_is_missing_is_named_with_what_can_be_replayed(copied):
    trajectory_path(copied / "trajectories", 2).unlink()
    with pytest.raises(DataError, match=r"update 3 cannot be replayed: the trajectories of update 2") as told:
        replayed(copied, 3)
    assert "Replayable are 1, 5-6." in str(told.value)
    assert replayed(copied, 6).is_same


def test_trajectories_that_no_update_could_train_on_are_named(copied):
    def spoil(column):
        column[3] = float("nan")

    path = trajectory_path(copied / "trajectories", 5)
    doctor(path, score=spoil)
    with pytest.raises(DataError, match=r"update_000005.safetensors is not what update 5 trained on: .*score"):
        replayed(copied, 5)


def test_another_policy_before_ppo_is_no_start(copied):
    (copied / "models" / "sft" / "model.safetensors").write_bytes(b"other")
    with pytest.raises(DataError, match="models/sft is not the policy with which PPO began"):
        open_recorded(copied)


def test_a_configuration_that_was_changed_afterwards_is_named(copied):
    path = copied / "config.toml"
    path.write_text(path.read_text().replace("epochs = 2\nminibatch", "epochs = 3\nminibatch"))
    with pytest.raises(ConfigError) as told:
        open_recorded(copied)
    assert "ppo.epochs: 2 in the checkpoint, 3 now" in str(told.value)


def test_a_checkpoint_that_is_damaged_is_named_with_how_to_go_around_it(copied):
    path = copied / "checkpoints" / "step_000004" / "learner.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(CheckpointError, match=r"step_000004/learner.safetensors") as told:
        replayed(copied, 5)
    assert "--from 3 begins with an earlier one" in told.value.__notes__[0]
    assert replayed(copied, 3, from_step=3).is_same


@pytest.fixture
def minichatgpt(monkeypatch, capsys, eventful):
    """Runs `minichatgpt replay`; returns exit code and output."""

    def run(folder, *arguments):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["minichatgpt", "replay", str(folder), *arguments])
            with pytest.raises(SystemExit) as end:
                main()
        return end.value.code, capsys.readouterr()

    return run


def test_the_command_lists_what_can_be_replayed(minichatgpt, eventful):
    code, told = minichatgpt(eventful.folder)
    assert code == 0
    assert "6 of 6 updates can be replayed" in told.out
    assert "5-6" in told.out
    assert "step_000004" in told.out
    assert "after 1 interruption:" in " ".join(told.out.split())
    listed = json.loads(minichatgpt(eventful.folder, "--json")[1].out)
    assert [(one["update"], one["start_step"]) for one in listed["replayable"]] == [
        (1, 0), (2, 0), (3, 0), (4, 0), (5, 4), (6, 4)
    ]  # fmt: skip


def test_the_command_ends_with_0_where_nothing_differs_and_with_1_where_something_does(minichatgpt, copied):
    code, told = minichatgpt(copied, "--update", "5")
    assert code == 0
    assert "✓ the same: largest difference 0 in metrics, 0 in weights" in told.out
    rewrite(copied, 5, lambda row: row["metrics"].update(entropy=row["metrics"]["entropy"] + 0.25))
    code, told = minichatgpt(copied, "--update", "5")
    assert code == 1
    assert "✗ differs from update 5 on: metrics by up to 0.25" in " ".join(told.out.split())
    code, told = minichatgpt(copied, "--update", "5", "--json")
    assert code == 1
    assert json.loads(told.out)["updates"][0]["metrics"]["entropy"]["difference"] == pytest.approx(0.25)
    code, told = minichatgpt(copied, "--update", "7")
    assert (code, told.out) == (1, "")
    assert "there is no update 7 to replay. Replayable are 1-6" in told.err


# --- other runs


def test_every_update_of_a_plain_run_is_the_same(tiny_run):
    assert verdicts(replayed(tiny_run, 3)) == [(update, "same", 0.0) for update in (1, 2, 3)]


@pytest.mark.slow
def test_after_a_lost_learner_what_is_on_record_is_the_same(train, poison):
    poison(5)
    outcome = train("ppo.checkpoint_every=2", "ppo.keep_last=1").ok()
    found = replayed(outcome.folder, 6, from_step=0)
    assert verdicts(found) == [(update, "same", 0.0) for update in range(1, 7)]
    [note] = open_recorded(outcome.folder).plan.notes
    assert "after 1 interruption:" in note


@pytest.mark.slow
def test_an_update_that_was_not_finite_and_the_one_in_its_place(train, monkeypatch):
    """Update 3 has no finite step at first; other samples come in its place."""
    spoilt = []
    targets = PPOLearner._targets

    def spoil(learner, batch):
        made, measured = targets(learner, batch)
        if learner.step == 2 and not spoilt:
            spoilt.append(True)
            measured = measured | {"kl_seq_sum": float("nan")}
        return made, measured

    with monkeypatch.context() as patch:
        patch.setattr(PPOLearner, "_targets", spoil)
        outcome = train("ppo.checkpoint_every=2").ok()
    assert "nonfinite_update" in [event for event, _ in outcome.events()]
    assert replayed(outcome.folder, 6, from_step=0).is_same
    [note] = open_recorded(outcome.folder).plan.notes
    assert note.startswith("1 update had no finite step")


@pytest.mark.slow
def test_after_a_rollback_by_a_guard_rail_what_is_on_record_is_the_same(train):
    outcome = train(
        "ppo.checkpoint_every=2", "ppo.keep_last=9", "ppo.optimizer.lr=0.004", "ppo.lr_warmup_updates=5",
        "guards.kl.max_nats=1", "guards.kl.patience_updates=1", "guards.kl.action=roll_back", "ppo.early_stop_kl=0.05",
    )  # fmt: skip
    run = open_recorded(outcome.folder)
    [note, *_] = run.plan.notes
    assert "a guard rail went back from update" in note
    last = max(run.rows)
    found = replay(open_recorded(outcome.folder, from_step=0), last, quiet)
    assert verdicts(found) == [(update, "same", 0.0) for update in range(1, last + 1)]
    assert any(one.metrics["early_stopped"].recorded for one in found.updates), "no update was stopped early"


def test_a_rollback_after_which_no_update_was_done_yet_is_no_interruption(tmp_path):
    at = datetime(2026, 1, 2, tzinfo=UTC)
    rollback = Rollback(to_step=0, from_step=3, next_draw_index=96, reason="KL", time=at, lineage=0)
    settings = RunSettings(temperature=1.0, learning_rate=1e-3, kl_target=None, kl_coef=0.1)
    write_json(tmp_path / FILE, Journal(start=settings, rollbacks=(rollback,)).model_dump(mode="json"))
    [note] = _gone(tmp_path, {})
    assert note.startswith("a guard rail went back from update 3 to 0")


@pytest.mark.slow
def test_a_live_run_can_be_replayed(train):
    looked = []

    def look(controls, number):
        if number == 5:
            looked.append(replayed(folder, 4))

    folder = train("ppo.updates=1", "ppo.checkpoint_every=2").ok().folder
    train("ppo.checkpoint_every=2", "ppo.keep_last=1", before_update=look).ok()
    assert looked[0].is_same
    assert looked[0].updates[-1].update == 4


@pytest.mark.slow
def test_a_run_on_ray_is_replayed_in_one_process(tiny, tiny_run, tmp_path, ray_runtime):
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_run, folder)
    config = tiny("ppo.updates=4", "ppo.checkpoint_every=2").model_copy(update={"evaluate": None})
    console = Console(file=io.StringIO())
    Pipeline(config, folder, start_runtime=lambda: ray_runtime, console=console, again=frozenset({"ppo"})).run()
    assert read_json(folder / "stages" / "ppo.json")["metrics"]["runtime"] == "ray"
    assert verdicts(replayed(folder, 4, from_step=0)) == [(update, "same", 0.0) for update in (1, 2, 3, 4)]
