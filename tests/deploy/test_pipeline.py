"""A whole run in one process: what it leaves, and what it does not do again."""

import io
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from common.checkpoint import read_shard
from common.checkpoint_store import CheckpointStore
from common.classifiers import register_classifiers
from common.config import RunConfig
from common.config_file import load_config
from common.errors import ConfigError, DataError, NonFiniteError, RunStopped
from common.hashing import file_hash
from common.records import ModelPaths, Progress, StageResult
from common.seeds import sample_seed
from deploy.local import LocalRuntime
from deploy.pipeline import Pipeline
from deploy.ppo.resume import refuse_changes, run_settings
from deploy.run import run_pipeline
from deploy.run_folder.contents import read_run
from deploy.runtime import Runtime
from deploy.stage_names import STAGES
from deploy.stop_signal import StopSignal
from learner.stages import StageRequest
from learner.trajectory_file import read_trajectories

SUMMARY_KEYS = {
    *(f"{name}_{when}" for name in ("reward", "p_positive", "judge_p_positive") for when in ("before", "after")),
    *("kl_seq_sum", "kl_token_mean", "win_rate", "win_rate_ci95", "distinct_2_before", "distinct_2_after"),
    *("sft_perplexity_before", "sft_perplexity_after", "rm_accuracy", "judge_accuracy", "updates", "trajectories"),
    *("ledger", "seconds", "tokens_per_second"),
}


def jsonl(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def stage(folder: Path, name: str) -> dict[str, Any]:
    return json.loads((folder / "stages" / f"{name}.json").read_text(encoding="utf-8"))


def no_runtime() -> Runtime:
    raise AssertionError("nothing is to be run, yet a place to run was started")


def run(
    config: RunConfig, folder: Path, *, again: set[str] = frozenset(), start: Callable[[], Runtime] = LocalRuntime
) -> tuple[bool, list[str]]:
    """Run the pipeline; returns whether anything was run, and the stages that were."""
    console = Console(file=io.StringIO(), width=200)
    ran = Pipeline(config, folder, start_runtime=start, console=console, again=frozenset(again)).run()
    told = [line.removeprefix("✓ ") for line in console.file.getvalue().splitlines() if line.startswith("✓")]
    return ran, [line.split()[0] for line in told if "done before" not in line]


# --- what a run leaves


def test_every_stage_leaves_a_record(tiny_run):
    assert {path.stem for path in (tiny_run / "stages").iterdir()} == set(STAGES)
    for name in STAGES:
        record = stage(tiny_run, name)
        assert record["stage"] == name
        assert record["fingerprint"]
        assert record["seconds"] > 0
        assert not record["from_cache"]


def test_nothing_unfinished_lies_around(tiny_run):
    assert not list(tiny_run.rglob("*.partial"))
    assert not (tiny_run / "run.json").exists(), "the metrics endpoint is gone"


def test_the_resolved_configuration_reads_back_equal(tiny, tiny_run):
    assert load_config(tiny_run / "config.toml") == tiny()


def test_every_update_has_its_line_of_metrics(tiny, tiny_run):
    rows = jsonl(tiny_run / "metrics.jsonl")
    config = tiny().ppo
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["identity"] for row in rows] == ["0.1", "0.2", "0.3"]
    for row in rows:
        metrics, seconds = row["metrics"], row["seconds"]
        assert metrics["trajectories"] == config.trajectories_per_update
        assert metrics["optimizer_steps"] == config.epochs * 2
        assert metrics["nonfinite_steps"] == 0
        assert metrics["logprob_gap_max"] <= 1e-4, "workers and learner agree at equal weights"
        assert all(isinstance(value, float) for value in metrics.values())
        assert {"collect", "generate", "score", "reference", "update", "publish", "total"} <= seconds.keys()
    first = rows[0]["metrics"]
    assert abs(first["kl_token_mean"]) < 1e-6, "the policy starts as its own reference"


def test_the_ledger_adds_up_at_every_update(tiny_run):
    for number, row in enumerate(jsonl(tiny_run / "metrics.jsonl"), start=1):
        ledger = row["ledger"]
        fates = ledger["trained"] + ledger["rolled_back"] + ledger["buffered"] + ledger["in_flight"]
        assert ledger["dispatched"] == fates + sum(ledger["dropped"].values())
        assert ledger["trained"] == 32 * number


def test_the_last_checkpoint_verifies(tiny, tiny_run):
    [folder] = (tiny_run / "checkpoints").iterdir()
    assert folder.name == "step_000003"
    store = CheckpointStore(str(tiny_run / "checkpoints"), keep_last=1, keep_best=0)
    newest, damaged = store.newest_verified()
    assert (newest.url, newest.step, newest.lineage, damaged) == (str(folder), 3, 0, [])
    assert newest.score == jsonl(tiny_run / "metrics.jsonl")[-1]["metrics"]["score_mean"]
    kept = store.read_state(newest)
    assert kept["rollouts"]["next_draw_index"] == 96
    assert kept["rollouts"]["ledger"]["trained"] == 96
    inputs = {role: stage(tiny_run, name)["output_hash"] for role, name in (("policy", "sft"), ("reward_model",) * 2)}
    refuse_changes(kept["settings"], run_settings(tiny(), inputs))
    tensors, state = read_shard(newest.url)
    assert state["step"] == 3
    exported = AutoModelForCausalLM.from_pretrained(tiny_run / "models" / "ppo")
    for name, weight in exported.named_parameters():
        assert torch.equal(tensors[f"model.policy.{name}"], weight), name
    assert tensors["model.value_head.weight"].abs().sum() > 0
    assert any(name.startswith("optimizer.") for name in tensors)


@pytest.mark.parametrize("name", ["pretrained", "sft", "ppo"])
def test_language_models_load_with_transformers_alone(tiny_run, name):
    folder = tiny_run / "models" / name
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("this film is", add_special_tokens=False, return_tensors="pt").input_ids
    assert ids.shape == (1, 3)
    assert tokenizer.unk_token_id not in ids
    assert torch.isfinite(model(ids).logits).all()
    assert model.config.vocab_size == len(tokenizer)


def test_training_changes_the_model(tiny_run):
    assert len({file_hash(tiny_run / "models" / n / "model.safetensors") for n in ("pretrained", "sft", "ppo")}) == 3


@pytest.mark.parametrize("name", ["reward_model", "judge"])
def test_classifiers_load_with_transformers_and_know_good_from_bad(tiny_run, name):
    register_classifiers()
    folder = tiny_run / "models" / name
    model, tokenizer = AutoModelForSequenceClassification.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    texts = tokenizer(["this is a good movie", "this is a bad movie"], return_tensors="pt", add_special_tokens=False)
    logits = model.eval()(input_ids=texts.input_ids, attention_mask=texts.attention_mask).logits
    assert logits.shape == (2, 2)
    assert logits[0, 1] - logits[0, 0] > logits[1, 1] - logits[1, 0]


def test_trajectories_are_kept_whole(tiny, tiny_run):
    files = sorted((tiny_run / "trajectories").iterdir())
    assert [file.name for file in files] == [f"update_{step:06d}.safetensors" for step in (1, 2, 3)]
    for update, file in enumerate(files):
        columns = read_trajectories(file)
        scores = {"score_part.reward_model", "score_part.reward_model_p_positive"}
        assert scores <= columns.keys()
        assert columns["draw_index"].tolist() == list(range(32 * update, 32 * (update + 1)))
        assert columns["sample_index"].tolist() == [0] * 32
        assert "samples_per_prompt" not in columns, "there where it is above 1"
        assert columns["step"].tolist() == [update] * 32, "strictly on-policy"
        assert columns["seed"].tolist() == [sample_seed(tiny().seed, int(d), 0) for d in columns["draw_index"]]
        assert np.isfinite(columns["score"]).all()
        for i in range(32):
            prompt, response = columns["prompt_ids"][i], columns["response_ids"][i]
            assert 1 <= len(prompt) <= 3
            assert 1 <= len(response) <= 8
            assert len(columns["logprobs"][i]) == len(columns["ref_logprobs"][i]) == len(response)
            assert (columns["logprobs"][i] <= 0).all()


def test_a_response_that_was_cut_is_as_long_as_it_may_be(tiny_run):
    tokenizer = AutoTokenizer.from_pretrained(tiny_run / "models" / "ppo")
    for file in (tiny_run / "trajectories").iterdir():
        columns = read_trajectories(file)
        for truncated, ids in zip(columns["truncated"], columns["response_ids"], strict=True):
            assert truncated == (ids[-1] != tokenizer.eos_token_id)
            assert not truncated or len(ids) >= 4


def test_samples_show_the_best_the_worst_and_held_out_prompts(tiny_run):
    samples = jsonl(tiny_run / "samples.jsonl")
    for step in (1, 2, 3):
        kept = {
            kind: [s["score"] for s in samples if s["kind"] == kind and s["step"] == step] for kind in ("best", "worst")
        }
        scores = read_trajectories(tiny_run / "trajectories" / f"update_{step:06d}.safetensors")["score"]
        assert max(kept["best"]) == pytest.approx(scores.max())
        assert min(kept["worst"]) == pytest.approx(scores.min())
    heldout = [s for s in samples if s["kind"] == "heldout"]
    assert len(heldout) == 6
    assert all(s["prompt"] and s["before"] and s["after"] for s in heldout)
    assert all(0 <= s["judge_before"] <= 1 and 0 <= s["judge_after"] <= 1 for s in heldout)


def test_the_summary_has_every_documented_key(tiny_run):
    summary = json.loads((tiny_run / "summary.json").read_text(encoding="utf-8"))
    assert summary.keys() >= SUMMARY_KEYS
    assert not [key for key in SUMMARY_KEYS if summary[key] is None]
    assert (summary["updates"], summary["trajectories"]) == (3, 96)
    assert summary["ledger"]["trained"] == summary["ledger"]["dispatched"] == 96
    low, high = summary["win_rate_ci95"]
    assert 0 <= low <= summary["win_rate"] <= high <= 1
    assert summary["seconds"].keys() == set(STAGES)
    assert all(rate > 0 for rate in summary["tokens_per_second"].values())
    assert summary["sft_perplexity_before"].keys() == summary["sft_perplexity_after"].keys() == {"reviews"}


def test_the_report_is_one_page_of_its_own(tiny_run):
    page = (tiny_run / "report.html").read_text(encoding="utf-8")
    assert page.lower().startswith("<!doctype html>")
    assert 'src="http' not in page
    assert read_run(tiny_run).heldout[0].after in page


def test_evaluation_leaves_training_alone(tiny_run):
    assert stage(tiny_run, "ppo")["output_hash"]
    assert stage(tiny_run, "evaluate")["output_hash"] == ""
    assert stage(tiny_run, "evaluate")["metrics"]["prompts"] == 6


# --- what is not done again


def test_a_second_run_starts_nothing(tiny, run_copy):
    before = {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}
    assert run(tiny(), run_copy, start=no_runtime) == (False, [])
    assert {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()} == before


def test_more_workers_run_nothing_again(tiny, run_copy):
    assert run(tiny("rollout.workers=4", "control.enabled=false"), run_copy, start=no_runtime) == (False, [])


def test_a_run_is_the_same_when_it_is_run_again(tiny, tiny_run, tmp_path):
    assert run(tiny("rollout.workers=1"), tmp_path / "again") == (True, list(STAGES))
    for name in STAGES:
        assert stage(tmp_path / "again", name)["output_hash"] == stage(tiny_run, name)["output_hash"]
    for file in (tiny_run / "trajectories").iterdir():
        assert file_hash(tmp_path / "again" / "trajectories" / file.name) == file_hash(file)


def test_ppo_again_begins_anew_and_evaluation_follows(tiny, tiny_run, run_copy):
    assert run(tiny(), run_copy, again={"ppo"}) == (True, ["ppo", "evaluate"])
    for file in ("models/ppo/model.safetensors", "trajectories/update_000003.safetensors"):
        assert file_hash(run_copy / file) == file_hash(tiny_run / file)
    rows = jsonl(run_copy / "metrics.jsonl")
    assert [row["identity"] for row in rows] == ["0.1", "0.2", "0.3"], "of no lineage before"


@pytest.mark.parametrize("again", ["ppo", "evaluate"])
def test_samples_are_neither_lost_nor_doubled_by_running_a_stage_again(tiny, tiny_run, run_copy, again):
    run(tiny(), run_copy, again={again})
    expected, found = (
        sorted(json.dumps(sample) for sample in jsonl(folder / "samples.jsonl")) for folder in (tiny_run, run_copy)
    )
    assert found == expected


OTHER = ("ppo.clip_eps=0.1", "ppo.updates=2", "ppo.checkpoint_every=1")


def test_other_ppo_settings_are_refused_by_name_and_nothing_is_touched(tiny, run_copy):
    before = {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()}
    with pytest.raises(ConfigError, match=r"ppo\.clip_eps: 0\.2 in the checkpoint, 0\.1 now") as refused:
        run(tiny(*OTHER).model_copy(update={"evaluate": None}), run_copy, start=no_runtime)
    assert "--again ppo" in str(refused.value)
    assert "ppo.updates" not in str(refused.value), "a run may go on for longer"
    assert "checkpoint_every" not in str(refused.value), "changes no result"
    assert {path: path.read_bytes() for path in run_copy.rglob("*") if path.is_file()} == before
    assert run(tiny(), run_copy, start=no_runtime) == (False, []), "the finished run stands"


def test_other_ppo_settings_run_ppo_and_evaluation_where_ppo_is_to_begin_anew(tiny, tiny_run, run_copy):
    assert run(tiny(*OTHER), run_copy, again={"ppo"}) == (True, ["ppo", "evaluate"])
    assert stage(run_copy, "ppo")["output_hash"] != stage(tiny_run, "ppo")["output_hash"]
    assert [path.name for path in sorted((run_copy / "trajectories").iterdir())] == [
        "update_000001.safetensors",
        "update_000002.safetensors",
    ]
    assert sorted(path.name for path in (run_copy / "checkpoints").iterdir()) == ["step_000001", "step_000002"]
    assert len([s for s in jsonl(run_copy / "samples.jsonl") if s["kind"] == "heldout"]) == 6
    assert load_config(run_copy / "config.toml") == tiny(*OTHER)


def test_fewer_updates_than_are_done_are_refused(tiny, run_copy):
    """Weights of three updates are not the result of a run of two."""
    with pytest.raises(ConfigError, match=r"step_000003 .* 3 updates, and ppo\.updates=2 .*--again ppo"):
        run(tiny("ppo.updates=2"), run_copy, start=no_runtime)
    assert stage(run_copy, "ppo")


def test_more_updates_go_on_where_the_run_ended(tiny, tiny_run, run_copy):
    assert run(tiny("ppo.updates=5"), run_copy) == (True, ["ppo", "evaluate"])
    rows = jsonl(run_copy / "metrics.jsonl")
    assert [row["identity"] for row in rows] == ["0.1", "0.2", "0.3", "1.4", "1.5"]
    assert rows[:3] == jsonl(tiny_run / "metrics.jsonl"), "byte for byte, seconds included"
    last = read_trajectories(run_copy / "trajectories" / "update_000005.safetensors")
    assert (last["draw_index"].min(), set(last["step"].tolist())) == (4 * 32, {4})
    assert len([s for s in jsonl(run_copy / "samples.jsonl") if s["kind"] == "heldout"]) == 6


def test_another_fine_tuning_runs_and_ppo_on_top_of_it_is_refused_unless_it_is_to_begin_anew(tiny, run_copy):
    other = tiny("sft.optimizer.lr=2e-3")
    with pytest.raises(ConfigError, match=r"inputs\.policy: \w{32} in the checkpoint, \w{32} now"):
        run(other, run_copy)
    assert stage(run_copy, "ppo"), "the result of the checkpoint's own inputs stays"
    assert run(other, run_copy, again={"ppo"}) == (True, ["ppo", "evaluate"])


def test_another_judge_changes_the_evaluation_only(tiny, run_copy):
    assert run(tiny("judge.training.epochs=29"), run_copy) == (True, ["judge", "evaluate"])


def test_pretraining_is_taken_from_the_cache_by_another_run(tiny, tmp_path):
    stop = {"sft": None, "reward_model": None, "judge": None, "ppo": None, "evaluate": None}
    only = tiny("pretrain.epochs=2").model_copy(update=stop)
    assert run(only, tmp_path / "one") == (True, ["pretrain"])
    assert run(only.model_copy(update={"name": "two"}), tmp_path / "two", start=no_runtime) == (True, ["pretrain"])
    first, second = stage(tmp_path / "one", "pretrain"), stage(tmp_path / "two", "pretrain")
    assert second["from_cache"]
    assert second["output_hash"] == first["output_hash"]
    assert second["metrics"] == first["metrics"]
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "two" / "models" / "pretrained")
    with pytest.raises(AssertionError, match="a place to run was started"):
        run(only, tmp_path / "two", again={"pretrain"}, start=no_runtime)


def test_other_pretraining_is_not_taken_from_the_cache(tiny, tmp_path):
    stop = {"sft": None, "reward_model": None, "judge": None, "ppo": None, "evaluate": None}
    run(tiny("pretrain.epochs=1").model_copy(update=stop), tmp_path / "one")
    with pytest.raises(AssertionError, match="a place to run was started"):
        run(tiny("pretrain.epochs=2").model_copy(update=stop), tmp_path / "two", start=no_runtime)


# --- what goes wrong


@pytest.mark.parametrize("content", [b"", b"{", b"[1]", b'{"stage": "\xff"}'])
def test_a_damaged_record_says_what_to_do(tiny, run_copy, content):
    path = run_copy / "stages" / "sft.json"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"stages/sft\.json .*; delete it to run its stage again"):
        run(tiny(), run_copy, start=no_runtime)
    path.unlink()
    assert run(tiny(), run_copy) == (True, ["sft"])


def test_a_model_that_was_deleted_is_made_again(tiny, tiny_run, run_copy):
    shutil.rmtree(run_copy / "models" / "sft")
    ran, stages = run(tiny(), run_copy)
    assert ran
    assert stages == ["sft"]
    assert stage(run_copy, "sft")["output_hash"] == stage(tiny_run, "sft")["output_hash"]


class FailsIn(LocalRuntime):
    """Breaks down in the middle of one supervised stage."""

    def __init__(self, stage: str) -> None:
        self.broken = stage
        self.closed = False

    def run_stage(self, request: StageRequest, stop: StopSignal) -> Iterator[Progress | StageResult]:
        for item in super().run_stage(request, stop):
            if request.stage == self.broken and isinstance(item, StageResult):
                raise NonFiniteError("the loss is NaN")
            yield item

    def close(self) -> None:
        self.closed = True


def test_an_interrupted_stage_keeps_those_before_it(tiny, tiny_run, tmp_path):
    folder, runtime = tmp_path / "run", FailsIn("judge")
    with pytest.raises(NonFiniteError, match="the loss is NaN"):
        run(tiny(), folder, start=lambda: runtime)
    assert runtime.closed
    assert {path.stem for path in (folder / "stages").iterdir()} == {"pretrain", "sft", "reward_model"}
    assert run(tiny(), folder) == (True, ["judge", "ppo", "evaluate"])
    assert stage(folder, "ppo")["output_hash"] == stage(tiny_run, "ppo")["output_hash"]


class AsksForTheEndIn(LocalRuntime):
    """Somebody wants the run to end in the middle of one supervised stage."""

    def __init__(self, stage: str) -> None:
        self.asked = stage

    def run_stage(self, request: StageRequest, stop: StopSignal) -> Iterator[Progress | StageResult]:
        for item in super().run_stage(request, stop):
            if request.stage == self.asked:
                stop.request("enough", 3)
            yield item


@pytest.mark.parametrize("asked", ["sft", "judge"])
def test_a_wish_to_stop_ends_a_stage_at_its_next_sign_of_life_and_keeps_those_before_it(tiny, tmp_path, asked):
    folder, before = tmp_path / "run", STAGES[: STAGES.index(asked)]
    with pytest.raises(RunStopped, match=r"stopped \(enough\); finished stages are kept") as stopped:
        run(tiny(), folder, start=lambda: AsksForTheEndIn(asked))
    assert stopped.value.exit_code == 3
    assert {path.stem for path in (folder / "stages").iterdir()} == set(before)
    assert run(tiny(), folder) == (True, [stage for stage in STAGES if stage not in before])


class FailsToStart(LocalRuntime):
    """Has no members to offer."""

    def members(self, config: RunConfig, paths: ModelPaths, folder: Path, stop: StopSignal) -> Any:
        raise NonFiniteError("no members today")


def test_a_ppo_that_ended_before_its_first_checkpoint_is_done_from_its_beginning(tiny, tiny_run, run_copy):
    with pytest.raises(NonFiniteError, match="no members today"):
        run(tiny(), run_copy, again={"ppo"}, start=FailsToStart)
    assert not (run_copy / "stages" / "ppo.json").exists()
    assert not (run_copy / "run.json").exists()
    assert run(tiny(), run_copy) == (True, ["ppo", "evaluate"])
    assert stage(run_copy, "ppo")["output_hash"] == stage(tiny_run, "ppo")["output_hash"]
    rows = jsonl(run_copy / "metrics.jsonl")
    assert [row["identity"] for row in rows] == ["0.1", "0.2", "0.3"]


def test_a_run_without_ppo_has_a_summary_with_gaps(tiny, tmp_path):
    stop = {"reward_model": None, "judge": None, "ppo": None, "evaluate": None}
    config = tiny("pretrain.epochs=1").model_copy(update=stop)
    run_pipeline(config, tmp_path / "short", local=True, address=None, again=frozenset())
    summary = json.loads((tmp_path / "short" / "summary.json").read_text(encoding="utf-8"))
    assert summary.keys() >= SUMMARY_KEYS
    assert summary["win_rate"] is None
    assert summary["sft_perplexity_after"]["reviews"] > 0
    assert (tmp_path / "short" / "report.html").is_file()
