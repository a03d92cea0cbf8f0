"""TensorBoard's files, read back: every update once, whatever happened in between."""

import pytest

from common.tracker_config import TensorboardConfig

pytest.importorskip("tensorboardX", reason="the extra tensorboard is not installed")

from deploy.tracking.tensorboard_tracker import TensorboardTracker

SAMPLE = {"kind": "best", "score": 1.5, "prompt": "a | b", "response": "c\nd \\e", "draw_index": 1, "kl_seq_sum": None}


@pytest.fixture
def started(tracked):
    """A tracker of a new run, or of one that is gone on with."""

    def start(run_id=None, **settings):
        tracker = TensorboardTracker(TensorboardConfig(**settings))
        assert tracker.start(tracked, run_id) == str(tracked.folder / "tensorboard")
        return tracker

    return start


def test_metrics_texts_and_settings_are_there(started, tracked, read_tensorboard, read_hyperparameters):
    tracker = started()
    tracker.log(1, {"score_mean": 0.5, "seconds/update": 2.0}, [SAMPLE])
    tracker.log(2, {"score_mean": 0.75, "samples/dropped/reward_error": 3.0}, [])
    tracker.close(has_succeeded=True)
    scalars, texts = read_tensorboard(tracked.folder / "tensorboard")
    assert scalars == {
        "score_mean": [(1, 0.5), (2, 0.75)],
        "seconds/update": [(1, 2.0)],
        "samples/dropped/reward_error": [(2, 3.0)],
    }
    ((step, table),) = texts["samples/text_summary"]
    assert (step, table.splitlines()[-1]) == (1, "| best | 1.5 | a \\| b | c d \\\\e |")
    ((step, table),) = texts["settings/text_summary"]
    assert "| ppo.clip_eps | 0.2 |" in table.splitlines()
    assert read_hyperparameters(tracked.folder / "tensorboard") == (dict(tracked.settings), 1)


def test_what_was_logged_is_on_disk_at_once(started, tracked, read_tensorboard):
    tracker = started()
    tracker.log(1, {"score_mean": 0.5}, [])
    assert read_tensorboard(tracked.folder / "tensorboard")[0] == {"score_mean": [(1, 0.5)]}
    tracker.close(has_succeeded=True)


def test_a_rewind_takes_back_later_points_and_no_file_is_written_over(started, tracked, read_tensorboard):
    """All within one second, in which other writers of event files give two files one name."""
    tracker = started()
    for step in (1, 2, 3):
        tracker.log(step, {"score_mean": float(step)}, [SAMPLE])
    assert tracker.go_back_to(1)
    tracker.log(2, {"score_mean": 20.0}, [])
    assert tracker.go_back_to(2)
    tracker.log(3, {"score_mean": 30.0}, [])
    tracker.close(has_succeeded=False)
    scalars, texts = read_tensorboard(tracked.folder / "tensorboard")
    assert scalars["score_mean"] == [(1, 1.0), (2, 20.0), (3, 30.0)]
    assert [step for step, _ in texts["samples/text_summary"]] == [1]
    assert len(list((tracked.folder / "tensorboard").iterdir())) == 3


def test_a_run_that_is_gone_on_with_has_its_settings_once(started, tracked, read_tensorboard, read_hyperparameters):
    first = started()
    first.log(1, {"score_mean": 1.0}, [])
    first.close(has_succeeded=False)
    second = started("known")
    second.go_back_to(1)
    second.log(2, {"score_mean": 2.0}, [])
    second.close(has_succeeded=True)
    scalars, texts = read_tensorboard(tracked.folder / "tensorboard")
    assert scalars["score_mean"] == [(1, 1.0), (2, 2.0)]
    assert len(texts["settings/text_summary"]) == 1
    assert read_hyperparameters(tracked.folder / "tensorboard") == (dict(tracked.settings), 1)


def test_texts_are_left_out_where_they_are_not_wanted(started, tracked, read_tensorboard):
    tracker = started(samples=False)
    tracker.log(1, {"score_mean": 0.5}, [SAMPLE])
    tracker.close(has_succeeded=True)
    assert set(read_tensorboard(tracked.folder / "tensorboard")[1]) == {"settings/text_summary"}
