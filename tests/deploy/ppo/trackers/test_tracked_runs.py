"""Whole runs with trackers: what these hold is what metrics.jsonl says, through stops, losses and failures."""

import numpy as np
import pytest

from deploy.run_folder.evaluation_file import read_evaluations
from deploy.run_folder.files import read_json

TENSORBOARD = "trackers.tensorboard={}"
EVERY_TWO = "ppo.checkpoint_every=2"


def stop_before(number):
    def interfere(controls, update):
        if update == number:
            controls.stop_signal.request("enough", exit_code=3)

    return interfere


def assert_holds(scalars, outcome):
    """Every number of every line once, in float32 as TensorBoard keeps it; seconds tell an update from its repeat."""
    expected = {}
    for row in outcome.rows():
        seconds = {f"seconds/{name}": value for name, value in row["seconds"].items()}
        for name, value in (row["metrics"] | seconds | {"samples/trained": row["ledger"]["trained"]}).items():
            if value is not None:
                expected.setdefault(name, []).append((row["step"], float(np.float32(value))))
    assert {name: scalars[name] for name in expected} == expected
    assert [step for step, _ in scalars["score_mean"]] == [1, 2, 3, 4, 5, 6]


def test_a_tracked_run_leaves_the_same_files_and_its_curves_survive_a_stop_and_a_loss(
    train, undisturbed, poison, read_tensorboard
):
    pytest.importorskip("tensorboardX", reason="extra tensorboard not installed")
    poison(4)
    stopped = train(TENSORBOARD, EVERY_TWO, before_update=stop_before(5))
    assert "stopped after update 5 of 6" in str(stopped.error)
    outcome = train(TENSORBOARD, EVERY_TWO).ok()
    outcome.assert_same_as(undisturbed(EVERY_TWO))
    assert [row["identity"] for row in outcome.rows()] == ["0.1", "0.2", "1.3", "1.4", "1.5", "2.6"]
    scalars, texts = read_tensorboard(outcome.folder / "tensorboard")
    assert_holds(scalars, outcome)
    assert [step for step, _ in texts["samples/text_summary"]] == [1, 2, 3, 4, 5, 6]
    assert read_json(outcome.folder / "trackers.json")["tensorboard"]["step"] == 6
    assert "tracker_failed" not in dict(outcome.events())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["tensorboard", "wandb"])
def test_evaluations_are_in_trackers_once_each_through_a_stop_and_a_loss(
    train, poison, kind, read_tensorboard, read_wandb
):
    pytest.importorskip(f"deploy.tracking.{kind}_tracker", reason=f"the extra {kind} is not installed")
    changes = (f"trackers.{kind}={{}}", "evaluate.every_updates=2", EVERY_TWO)
    poison(4)
    train(*changes, before_update=stop_before(5))
    outcome = train(*changes).ok()
    expected = [(line.step, line.numbers["win_rate"]) for line in read_evaluations(outcome.folder)]
    assert [step for step, _ in expected] == [0, 2, 4, 6]
    found = []
    if kind == "tensorboard":
        found = read_tensorboard(outcome.folder / kind)[0]["evaluation/win_rate"]
    else:
        for folder in sorted((outcome.folder / kind).glob("offline-run-*")):
            rows = read_wandb(folder)[0]
            found += [(s, float(r["evaluation/win_rate"])) for s, r in rows.items() if "evaluation/win_rate" in r]
    assert [step for step, _ in found] == [step for step, _ in expected]
    assert [rate for _, rate in found] == pytest.approx([rate for _, rate in expected])


@pytest.mark.slow
def test_a_tracker_that_fails_ends_no_run_and_gets_what_it_lacks_when_the_run_is_gone_on_with(
    train, undisturbed, monkeypatch, read_tensorboard
):
    tensorboard = pytest.importorskip(
        "deploy.tracking.tensorboard_tracker", reason="the extra tensorboard is not installed"
    )
    log = tensorboard.TensorboardTracker.log

    def full(tracker, step, metrics, samples):
        if step == 3:
            raise OSError(28, "No space left on device")
        log(tracker, step, metrics, samples)

    with monkeypatch.context() as patch:
        patch.setattr(tensorboard.TensorboardTracker, "log", full)
        stopped = train(TENSORBOARD, EVERY_TWO, before_update=stop_before(5))
    assert "stopped after update 5 of 6" in str(stopped.error)
    (text,) = [text for event, text in stopped.events() if event == "tracker_failed"]
    assert "tracker tensorboard failed and gets nothing more: OSError: [Errno 28] No space left on device" in text
    assert text in stopped.output, "it is shown, too"
    assert read_json(stopped.folder / "trackers.json")["tensorboard"]["step"] == 2

    outcome = train(TENSORBOARD, EVERY_TWO).ok()
    outcome.assert_same_as(undisturbed(EVERY_TWO))
    assert_holds(read_tensorboard(outcome.folder / "tensorboard")[0], outcome)


@pytest.mark.slow
def test_ppo_anew_begins_its_curves_anew(train, read_tensorboard):
    pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")
    train(TENSORBOARD, before_update=stop_before(3))
    outcome = train(TENSORBOARD, again=True).ok()
    scalars, texts = read_tensorboard(outcome.folder / "tensorboard")
    assert_holds(scalars, outcome)
    assert len(texts["settings/text_summary"]) == 1


@pytest.mark.slow
def test_an_offline_run_of_wandb_holds_every_update_once_through_a_loss_and_a_stop(train, poison, read_wandb):
    pytest.importorskip("wandb", reason="the extra wandb is not installed")
    poison(4)
    train("trackers.wandb={}", EVERY_TWO, before_update=stop_before(5))
    outcome = train("trackers.wandb={}", EVERY_TWO).ok()
    held = read_json(outcome.folder / "trackers.json")["wandb"]
    assert held["step"] == 6
    steps, scores = [], {}
    for folder in sorted((outcome.folder / "wandb").glob("offline-run-*")):
        rows, _, run_id = read_wandb(folder)
        assert run_id == held["id"]
        steps += rows
        scores |= {step: float(row["score_mean"]) for step, row in rows.items()}
    assert steps == [1, 2, 3, 4, 5, 6]
    assert scores == {row["step"]: row["metrics"]["score_mean"] for row in outcome.rows()}
