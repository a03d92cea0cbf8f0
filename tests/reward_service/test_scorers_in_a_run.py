"""Mixtures in whole runs in one process: what they leave, in training and in evaluation."""

import io
import json

import numpy as np
import psutil
import pytest
from prometheus_client import CollectorRegistry
from rich.console import Console

from common.config import RunConfig
from common.errors import MemberFailedError
from common.metrics import RunMetrics
from common.records import ModelPaths
from deploy.control.run_controls import RunControls
from deploy.evaluation.stage import evaluate_stage
from deploy.local import LocalRuntime
from deploy.place import Place
from deploy.run import run_pipeline
from deploy.stop_signal import StopSignal
from learner.trajectory_file import read_trajectories

pytestmark = pytest.mark.usefixtures("callables")

MIXTURE = (
    "reward_service.scorers=[{type='model', weight=2},"
    " {type='function', name='length', callable='tiny_rewards:length', weight=-0.5}]"
)


def function(name):
    return {"type": "function", "name": name, "callable": f"tiny_rewards:{name}"}


def without_reward_model(config, *scorers):
    document = config.model_dump()
    document["reward_service"]["scorers"] = list(scorers)
    return RunConfig.model_validate({**document, "reward_model": None})


def python_processes():
    """Those below this one; a browser of other tests may have some that come and go."""
    return {process for process in psutil.Process().children(recursive=True) if "python" in process.name()}


def run(config, folder):
    before = python_processes()
    run_pipeline(config, folder, local=True, address=None, again=frozenset({"ppo"}))
    assert python_processes() <= before, "a function's process was left behind"
    columns = [read_trajectories(file) for file in sorted((folder / "trajectories").iterdir())]
    assert len(columns) == 3
    return columns, json.loads((folder / "summary.json").read_text(encoding="utf-8"))


def heldout(folder):
    lines = (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines()
    return [sample for sample in map(json.loads, lines) if sample["kind"] == "heldout"]


def test_a_run_is_trained_on_a_mixture_and_keeps_every_part(tiny, run_copy):
    columns, summary = run(tiny(MIXTURE), run_copy)
    for update in columns:
        parts = {name.removeprefix("score_part.") for name in update if name.startswith("score_part.")}
        assert parts == {"reward_model", "reward_model_p_positive", "length"}
        assert update["score_part.length"].max() > 1.0
        np.testing.assert_allclose(
            update["score"], 2 * update["score_part.reward_model"] - 0.5 * update["score_part.length"]
        )
    samples = heldout(run_copy)
    assert summary["reward_after"] == pytest.approx(np.mean([s["score_after"] for s in samples]))
    assert summary["p_positive_after"] is not None
    page = (run_copy / "report.html").read_text(encoding="utf-8")
    assert "not among the scorers" not in page


def test_a_run_needs_no_reward_model_where_a_function_scores(tiny, run_copy):
    config = without_reward_model(tiny(), function("length"))
    columns, summary = run(config, run_copy)
    for update in columns:
        assert [name for name in update if name.startswith("score_part.")] == ["score_part.length"]
        np.testing.assert_array_equal(update["score"], update["score_part.length"])
    assert summary["reward_after"] > 1.0
    assert summary["p_positive_after"] is summary["p_positive_before"] is summary["rm_accuracy"] is None
    assert summary["judge_p_positive_after"] > 0
    page = (run_copy / "report.html").read_text(encoding="utf-8")
    assert "Rated positive: not recorded; the reward model is not among the scorers." in page


def evaluate(config, tiny_run, folder):
    folder.mkdir()
    models = tiny_run / "models"
    paths = ModelPaths(*(str(models / name) for name in ("sft", "reward_model", "judge")))
    stop = StopSignal()
    place = Place(
        config,
        LocalRuntime(),
        folder,
        Console(file=io.StringIO()),
        stop,
        RunControls(config.name, stop),
        RunMetrics(CollectorRegistry()),
    )
    return evaluate_stage(place, paths, str(models / "ppo"), {}).metrics


@pytest.mark.slow
def test_a_group_of_which_one_sample_has_no_score_is_dropped_whole(tiny, run_copy):
    """`picky` leaves out about half of the samples; what is trained on are pairs of which both have a score."""
    groups = ("ppo.samples_per_prompt=2", "ppo.advantage=rloo", "ppo.max_drops_per_update=1000")
    config = without_reward_model(tiny(*groups), function("picky")).model_copy(update={"evaluate": None})
    columns, _ = run(config, run_copy)
    for update in columns:
        assert update["sample_index"].tolist() == [0, 1] * 16
        assert (update["draw_index"][::2] == update["draw_index"][1::2]).all()
        assert np.isfinite(update["score"]).all()
    ledger = json.loads((run_copy / "ledger.json").read_text(encoding="utf-8"))["ledger"]
    assert ledger["trained"] == 96
    dropped = ledger["dropped"]
    assert dropped.keys() == {"reward_nonfinite", "group_incomplete"}
    assert sum(dropped.values()) % 2 == 0, "in whole groups"
    assert ledger["dispatched"] == 96 + sum(dropped.values())


def test_prompts_without_a_score_are_left_out_of_both_sides_and_counted(tiny, tiny_run, tmp_path):
    config = tiny("evaluate.shown=100", "evaluate.prompts=8", "rollout.chunk_sequences=3", "heldout_fraction=0.6")
    whole = evaluate(without_reward_model(config, function("length")), tiny_run, tmp_path / "whole")
    assert "prompts_unscored" not in whole
    assert len(heldout(tmp_path / "whole")) == whole["prompts"] == 8

    found = evaluate(without_reward_model(config, function("picky")), tiny_run, tmp_path / "picky")
    kept = [s for s in heldout(tmp_path / "whole") if len(s["before"].split()) % 2 and len(s["after"].split()) % 2]
    assert 0 < len(kept) < 8, "nothing was dropped, or all: nothing was tested"
    assert (found["prompts"], found["prompts_unscored"]) == (8, 8 - len(kept))
    shown = heldout(tmp_path / "picky")
    assert [(s["before"], s["after"], s["judge_after"]) for s in shown] == [
        (s["before"], s["after"], s["judge_after"]) for s in kept
    ]
    for when in ("before", "after"):
        assert found[f"reward_{when}"] == pytest.approx(np.mean([s[f"score_{when}"] for s in shown]))
        assert found[f"judge_p_positive_{when}"] == pytest.approx(np.mean([s[f"judge_{when}"] for s in kept]))


def test_an_evaluation_without_any_score_says_why(tiny, tiny_run, tmp_path):
    config = without_reward_model(tiny(), function("hopeless"))
    with pytest.raises(
        MemberFailedError, match=r"none of evaluate\.prompts=6 .* reward_error: .*nothing is good enough"
    ):
        evaluate(config, tiny_run, tmp_path / "hopeless")


def test_evaluation_counts_no_prompt_baseline(tiny, tiny_run, tmp_path):
    plain, baseline = (
        evaluate(tiny(f"ppo.score_baseline={kind}"), tiny_run, tmp_path / kind) for kind in ("none", "prompt")
    )
    assert plain == baseline
