"""Trackers beside a run: what each is given, in which order, and what follows when one is slow or fails."""

import json
import threading
from pathlib import Path

import pytest

from common.config_file import load_config
from common.errors import ConfigError
from deploy.run_folder.files import read_json
from deploy.tracking.trackers import MAX_SETTING_CHARACTERS, TrackedRun, Trackers, build_trackers, tracked_run

DEADLINE_S = 60.0


class Diary:
    """A tracker that notes down what it is told; it fails or waits where it is asked to."""

    def __init__(self, name="diary", *, forgets=True, fails_at=None, gate=None):
        self.name, self.forgets, self.fails_at, self.gate = name, forgets, fails_at, gate
        self.log_of, self.threads = [], set()

    def _note(self, *what):
        self.threads.add(threading.current_thread())
        if self.gate is not None:
            assert self.gate.wait(DEADLINE_S)
        if self.fails_at == what[:2]:
            raise SystemExit("no more room on the server")
        self.log_of.append(what)

    def start(self, run, run_id):
        self._note("start", run.name, run_id)
        return run_id or f"id of {self.name}"

    def log(self, step, metrics, samples):
        self._note("log", step, dict(metrics), list(samples))

    def go_back_to(self, step):
        self._note("back", step)
        return self.forgets

    def close(self, *, has_succeeded):
        self._note("close", has_succeeded)

    def steps(self):
        return [what[1] for what in self.log_of if what[0] == "log"]


def row(step, **metrics):
    return {"step": step, "identity": f"0.{step}", "metrics": metrics, "seconds": {}, "ledger": {}}


def write_files(folder, steps):
    """As the recorder leaves them: a line per update, and two samples each."""
    with (folder / "metrics.jsonl").open("w") as file:
        file.writelines(json.dumps(row(step, score_mean=step / 2)) + "\n" for step in steps)
    with (folder / "samples.jsonl").open("w") as file:
        file.writelines(json.dumps({"step": s, "kind": kind}) + "\n" for s in steps for kind in ("best", "worst"))


@pytest.fixture
def told():
    return []


@pytest.fixture
def trackers_of(tmp_path, told):
    def build(*trackers, **settings):
        note = lambda event, text: told.append((event, text))  # noqa: E731
        return Trackers(trackers, TrackedRun("mine", tmp_path, {}), note=note, **settings)

    return build


def test_a_tracker_is_given_each_update_in_order_by_one_thread_of_its_own(trackers_of, told, tmp_path):
    diary, other = Diary(), Diary("other")
    with trackers_of(diary, other) as trackers:
        for step in (1, 2, 3):
            trackers.record(row(step, score_mean=step / 2), [{"kind": "best", "step": step}])
    assert diary.log_of == other.log_of
    assert diary.log_of == [
        ("start", "mine", None),
        *(("log", step, {"score_mean": step / 2}, [{"kind": "best", "step": step}]) for step in (1, 2, 3)),
        ("close", True),
    ]
    assert len(diary.threads | other.threads) == 2
    assert threading.current_thread() not in diary.threads
    held = {"id": "id of diary", "step": 3}
    assert read_json(tmp_path / "trackers.json")["diary"] == held
    assert told == []


def test_a_row_is_flat_and_holds_what_is_finite(trackers_of):
    diary = Diary()
    with trackers_of(diary) as trackers:
        trackers.record(
            {
                "step": 1,
                "metrics": {"score_mean": 1.5, "kl_coef": float("nan"), "policy_loss": None},
                "seconds": {"update": 0.5},
                "ledger": {"trained": 32, "dropped": {"reward_error": 2}},
            },
            [],
        )
    assert diary.log_of[1][2] == {
        "score_mean": 1.5,
        "seconds/update": 0.5,
        "samples/trained": 32,
        "samples/dropped/reward_error": 2,
    }


def test_a_tracker_that_fails_is_told_once_and_left_alone_while_the_others_go_on(trackers_of, told, tmp_path):
    bad, good = Diary("bad", fails_at=("log", 2)), Diary("good")
    with trackers_of(bad, good) as trackers:
        for step in (1, 2, 3, 4):
            trackers.record(row(step), [])
    assert (bad.steps(), good.steps()) == ([1], [1, 2, 3, 4])
    assert ("close", True) not in bad.log_of
    ((event, text),) = told
    assert event == "tracker_failed"
    assert text.startswith("tracker bad failed and gets nothing more: SystemExit: no more room on the server. Training")
    assert {name: held["step"] for name, held in read_json(tmp_path / "trackers.json").items()} == {"bad": 1, "good": 4}


def test_a_tracker_that_cannot_start_is_told_and_left_alone(trackers_of, told):
    bad = Diary(fails_at=("start", "mine"))
    with trackers_of(bad) as trackers:
        trackers.record(row(1), [])
    assert bad.log_of == []
    assert [event for event, _ in told] == ["tracker_failed"]


def test_a_slow_tracker_holds_nobody_up_until_the_end_and_then_not_for_ever(trackers_of, told):
    gate = threading.Event()
    slow, good = Diary("slow", gate=gate), Diary("good")
    with trackers_of(slow, good, close_s=0.2) as trackers:
        for step in (1, 2):
            trackers.record(row(step), [])
        assert slow.log_of == []
    assert good.steps() == [1, 2]
    ((event, text),) = told
    assert (event, text.split(":")[0]) == ("tracker_failed", "tracker slow did not end within 0.2 s")
    gate.set()


def test_a_run_that_ends_by_an_error_is_closed_as_such(trackers_of):
    diary = Diary()
    with pytest.raises(ValueError, match="it broke"), trackers_of(diary):
        raise ValueError("it broke")
    assert diary.log_of[-1] == ("close", False)


# --- going on


def test_after_a_rewind_what_can_be_forgotten_comes_again_and_what_cannot_comes_once(trackers_of, tmp_path):
    forgetful, lasting = Diary("forgetful"), Diary("lasting", forgets=False)
    with trackers_of(forgetful, lasting) as trackers:
        for step in (1, 2, 3, 4):
            trackers.record(row(step), [])
        write_files(tmp_path, [1, 2])
        trackers.go_back_to(2)
        for step in (3, 4, 5):
            trackers.record(row(step), [])
    assert forgetful.steps() == [1, 2, 3, 4, 3, 4, 5]
    assert forgetful.log_of[5] == ("back", 2)
    assert lasting.steps() == [1, 2, 3, 4, 5]


def test_a_resumed_run_goes_on_under_the_same_id_with_what_the_tracker_lacks(trackers_of, tmp_path):
    """It failed at update 2, or was killed before it was written."""
    with trackers_of(Diary(fails_at=("log", 2))) as trackers:
        for step in (1, 2, 3):
            trackers.record(row(step), [])
    write_files(tmp_path, [1, 2, 3])
    again, new = Diary(), Diary("new")
    with trackers_of(again, new) as trackers:
        trackers.go_back_to(3)
        trackers.record(row(4), [])
    assert again.log_of[0] == ("start", "mine", "id of diary")
    assert (again.steps(), new.steps()) == ([2, 3, 4], [1, 2, 3, 4])
    assert again.log_of[2] == ("log", 2, {"score_mean": 1.0}, [{"step": 2, "kind": k} for k in ("best", "worst")])


def test_without_trackers_nothing_is_written_and_nothing_started(trackers_of, tmp_path):
    before = threading.active_count()
    with trackers_of() as trackers:
        trackers.go_back_to(3)
        trackers.record(row(4), [])
        assert threading.active_count() == before
    assert list(tmp_path.iterdir()) == []


# --- evaluations


def line(step, **numbers):
    return {"step": step, "numbers": numbers, "over_optimised": step == 4}


def write_evaluations(folder, steps):
    text = "".join(json.dumps(line(step, win_rate=step / 10)) + "\n" for step in steps)
    (folder / "evaluations.jsonl").write_text(text, encoding="utf-8")


def every_two(step):
    return step % 2 == 0


def win_rates(diary):
    return [(what[1], what[2].get("evaluation/win_rate")) for what in diary.log_of if what[0] == "log"]


def test_an_evaluation_goes_with_its_update_and_that_before_ppo_is_step_0(trackers_of):
    diary = Diary()
    with trackers_of(diary, evaluates=every_two) as trackers:
        trackers.evaluated(line(0, win_rate=0.5, gap=None))
        for step in (1, 2, 3, 4):
            trackers.record(row(step, score_mean=1.0), [])
            if step == 2:
                trackers.evaluated(line(2, win_rate=0.75, gap=float("nan")))
    assert [what[1:3] for what in diary.log_of[1:-1]] == [
        (0, {"evaluation/win_rate": 0.5, "evaluation/over_optimised": 0.0}),
        (1, {"score_mean": 1.0}),
        (2, {"score_mean": 1.0, "evaluation/win_rate": 0.75, "evaluation/over_optimised": 0.0}),
        (3, {"score_mean": 1.0}),
        (4, {"score_mean": 1.0}),  # its evaluation had no score
    ]


def test_after_a_rewind_evaluations_come_again_only_where_they_can_be_forgotten(trackers_of, tmp_path):
    forgetful, lasting = Diary("forgetful"), Diary("lasting", forgets=False)
    with trackers_of(forgetful, lasting, evaluates=every_two) as trackers:
        trackers.evaluated(line(0, win_rate=0.0))
        for step in (1, 2, 3, 4):
            trackers.record(row(step), [])
            if every_two(step):
                trackers.evaluated(line(step, win_rate=step / 10))
        write_files(tmp_path, [1, 2, 3])
        write_evaluations(tmp_path, [0, 2])
        trackers.go_back_to(3)
        trackers.record(row(4), [])
        trackers.evaluated(line(4, win_rate=0.4))
    expected = [(0, 0.0), (1, None), (2, 0.2), (3, None), (4, 0.4)]
    assert win_rates(lasting) == expected
    assert win_rates(forgetful) == [*expected, (4, 0.4)]


def test_an_update_that_was_stopped_before_its_evaluation_goes_with_it_when_the_run_is_gone_on_with(
    trackers_of, tmp_path
):
    before = Diary()

    def stop_in_the_evaluation():
        with trackers_of(before, evaluates=every_two) as trackers:
            trackers.evaluated(line(0, win_rate=0.0))
            trackers.record(row(1), [])
            trackers.record(row(2), [])
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stop_in_the_evaluation()
    write_files(tmp_path, [1, 2])
    write_evaluations(tmp_path, [0])
    again, new = Diary(), Diary("new")
    with trackers_of(again, new, evaluates=every_two) as trackers:
        trackers.go_back_to(2)
        trackers.evaluated(line(2, win_rate=0.2))
    assert win_rates(before) == [(0, 0.0), (1, None)]
    assert win_rates(again) == [(2, 0.2)]
    assert win_rates(new) == [(0, 0.0), (1, None), (2, 0.2)]


# --- what a configuration says


def test_no_tracker_is_on_unless_its_table_is_there(tiny):
    assert build_trackers(tiny()) == build_trackers(tiny("trackers.wandb.mode=disabled")) == []


def test_settings_are_flat_and_long_ones_are_cut(tiny, tmp_path):
    settings = tracked_run(tiny("trackers.tensorboard={}"), tmp_path).settings
    assert settings["ppo.optimizer.lr"] == 1e-3
    assert settings["ppo.data"] == '["reviews"]'
    assert settings["control.enabled"] is True
    assert len(settings["data.reviews.texts"]) == MAX_SETTING_CHARACTERS + 1
    assert all(isinstance(value, str | int | float) for value in settings.values())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("trackers.wandb.mode=on", "'offline', 'online' or 'disabled'"),
        ("trackers.wandb.key=abc", "unknown key 'key'"),
        ("trackers.mlflow={}", "unknown key 'mlflow': legal keys are tensorboard, wandb"),
        ("trackers.wandb.project=''", "trackers.wandb.project"),
    ],
)
def test_what_no_tracker_knows_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        load_config(Path(__file__).parents[4] / "deploy" / "configs" / "tiny.toml", [change])
