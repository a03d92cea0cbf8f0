"""wandb in its offline mode, for real: its files are read back."""

import json

import pytest

from common.tracker_config import WandbConfig

pytest.importorskip("wandb", reason="the extra wandb is not installed")

from deploy.tracking.wandb_tracker import WandbTracker

SAMPLE = {"kind": "best", "score": 1.5, "prompt": "a", "response": "b", "draw_index": 1, "kl_seq_sum": None, "step": 1}


def finished(folder):
    return sorted((folder / "wandb").glob("offline-run-*"))


def test_an_offline_run_keeps_metrics_texts_and_settings_and_is_gone_on_with_under_its_id(tracked, read_wandb):
    tracker = WandbTracker(WandbConfig(project="test"))
    run_id = tracker.start(tracked, None)
    tracker.log(1, {"score_mean": 0.5, "seconds/update": 2.0}, [SAMPLE])
    tracker.log(2, {"score_mean": 0.75}, [])
    assert not tracker.go_back_to(1), "wandb forgets nothing"
    tracker.close(has_succeeded=False)

    (folder,) = finished(tracked.folder)
    rows, settings, found_id = read_wandb(folder)
    assert found_id == run_id
    assert set(rows) == {1, 2}
    assert (rows[1]["score_mean"], rows[1]["seconds/update"], rows[2]["score_mean"]) == ("0.5", "2", "0.75")
    assert "samples" not in rows[2]
    (table,) = (folder / "files" / "media" / "table").glob("samples_*.json")
    assert json.loads(table.read_text())["data"] == [["best", 1.5, None, 1, "a", "b"]]
    assert {key: json.loads(settings[key]) for key in tracked.settings} == dict(tracked.settings)

    second = WandbTracker(WandbConfig(project="test", samples=False))
    assert second.start(tracked, run_id) == run_id
    second.log(3, {"score_mean": 1.0}, [SAMPLE])
    second.close(has_succeeded=True)
    (other,) = set(finished(tracked.folder)) - {folder}
    rows, _, found_id = read_wandb(other)
    assert (found_id, set(rows), rows[3]["score_mean"]) == (run_id, {3}, "1")
    assert "samples" not in rows[3]
