"""What an update reports, written down: one line each, legal JSON whatever the numbers."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from rich.console import Console

from common.metrics import RunMetrics
from common.records import Identity, Sample, UpdateReport
from common.run_settings import RunSettings
from common.supervision import Ledger
from common.text import encode, train_word_tokenizer
from deploy.ppo.pulse import Pulse
from deploy.ppo.recorder import RunRecorder, append_json
from deploy.progress import progress
from deploy.run_folder.contents import read_run
from deploy.stopwatch import Stopwatch


def lines(path: Path) -> list[dict]:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    return [json.loads(line, parse_constant=refuse) for line in path.read_text(encoding="utf-8").splitlines()]


def test_numbers_that_are_not_finite_become_null(tmp_path):
    path = tmp_path / "x.jsonl"
    append_json(path, {"a": math.nan, "b": {"c": [math.inf, 1.5], "d": (-math.inf, 2)}, "e": 0.0})
    assert lines(path) == [{"a": None, "b": {"c": [None, 1.5], "d": [None, 2]}, "e": 0.0}]


def test_numpy_numbers_that_are_not_finite_become_null(tmp_path):
    path = tmp_path / "x.jsonl"
    append_json(path, {"a": np.float64("nan"), "b": np.float64(0.5)})
    assert lines(path) == [{"a": None, "b": 0.5}]


def test_lines_are_added_and_text_is_kept(tmp_path):
    path = tmp_path / "x.jsonl"
    append_json(path, {"text": "größer\n„so“"})
    append_json(path, {"text": "zwei"})
    assert lines(path) == [{"text": "größer\n„so“"}, {"text": "zwei"}]
    assert "größer" in path.read_text(encoding="utf-8")


@pytest.fixture
def tokenizer():
    return train_word_tokenizer(["a good film", "a bad film"], vocabulary_size=32, max_tokens=16)


@pytest.fixture
def told():
    """Reports that were handed on."""
    return []


@pytest.fixture
def tracked():
    """Rows and samples that trackers were given."""
    return []


@pytest.fixture
def cycles():
    """What was told of speed and waits."""
    return []


@pytest.fixture
def record(tokenizer, tmp_path, told, tracked, cycles):
    """Records reports into a run folder; returns the recorder and its parts."""
    metrics, watch, ledger = RunMetrics(CollectorRegistry()), Stopwatch(), Ledger()
    ledger.dispatch(4)
    ledger.buffer(4)
    ledger.train(4)
    with progress(Console(file=io.StringIO())) as bar:
        task = bar.add_task("ppo", total=2, message="")
        recorder = RunRecorder(
            tmp_path,
            tokenizer=tokenizer,
            ledger=lambda: ledger,
            metrics=metrics,
            watch=watch,
            pulse=Pulse(),
            settings=lambda: RunSettings(temperature=1.0, learning_rate=1e-3, kl_target=None, kl_coef=0.1),
            bar=(bar, task),
            saw=told.append,
            track=lambda row, samples: tracked.append((row, samples)),
            cycled=cycles.append,
            note=lambda event, text: told.append((event, text)),
        )
        yield recorder, watch, metrics, bar.tasks[0]


def report(step: int, **metrics: float) -> UpdateReport:
    return UpdateReport(
        step=step,
        identity=Identity(0, step),
        trained=((0, 0),),
        metrics={"score_mean": 0.5, **metrics},
        seconds={"train": 0.25},
        weights_hash=f"{step:016x}",
    )


def test_an_update_without_a_finite_step_is_an_event_and_no_line(record, told, tmp_path):
    recorder, _, metrics, task = record
    recorder.record(report(1))
    recorder.record(replace(report(1, nonfinite_steps=4.0), trained=(), is_finite=False))
    assert [line["step"] for line in lines(tmp_path / "metrics.jsonl")] == [1]
    assert told[-1][0] == "nonfinite_update"
    assert "update 2 had no step with a finite loss" in told[-1][1]
    assert metrics.registry.get_sample_value("minichatgpt_updates_total") == 1
    assert metrics.registry.get_sample_value("minichatgpt_nonfinite_steps_total") == 4
    assert task.completed == 1


def test_its_speed_and_waits_are_told_once_all_is_written(record, cycles, tmp_path):
    recorder, watch, *_ = record
    watch.add({"collect": 1e9})
    recorder.record(report(1))
    [cycle] = cycles
    assert cycle.learner_wait == 1.0
    assert len(lines(tmp_path / "metrics.jsonl")) == 1
    recorder.record(replace(report(1), trained=(), is_finite=False))
    assert len(cycles) == 1, "an update that changed nothing is none"


def test_an_update_is_one_line(record, told, tmp_path):
    recorder, watch, metrics, task = record
    watch.add({"collect": 1.5})
    recorder.record(report(1, kl_token_mean=0.125))
    recorder.record(report(2, policy_loss=math.nan))
    first, second = lines(tmp_path / "metrics.jsonl")
    assert first["step"] == 1
    assert first["identity"] == "0.1"
    assert first["weights_hash"] == "0000000000000001"
    assert first["metrics"] == {"kl_token_mean": 0.125, "score_mean": 0.5}
    assert first["seconds"].pop("total") >= 0
    assert first["seconds"] == {"collect": 1.5, "train": 0.25}
    assert first["ledger"]["trained"] == first["ledger"]["dispatched"] == 4
    assert second["metrics"]["policy_loss"] is None
    assert "collect" not in second["seconds"], "seconds belong to one update"
    assert metrics.registry.get_sample_value("minichatgpt_updates_total") == 2
    assert metrics.registry.get_sample_value("minichatgpt_score_mean") == 0.5
    assert task.completed == 2
    assert [each.step for each in told] == [1, 2]
    assert [update.step for update in read_run(tmp_path).updates] == [1, 2]


def test_trackers_are_given_what_is_written_down(record, tracked, tmp_path, tokenizer):
    recorder, *_ = record
    [ids] = encode(tokenizer, ["a good film"])
    sample = Sample("worst", 3, np.asarray(ids, np.int32), np.asarray(ids, np.int32), -0.5, None)
    recorder.record(replace(report(1), samples=(sample,)))
    recorder.record(replace(report(1), trained=(), is_finite=False))
    [(row, samples)] = tracked
    assert [row] == lines(tmp_path / "metrics.jsonl")
    assert samples == lines(tmp_path / "samples.jsonl")


def test_samples_are_kept_as_text(record, tmp_path, tokenizer):
    recorder, *_ = record
    [prompt, response] = encode(tokenizer, ["a good", "film"])
    sample = Sample("best", 7, np.asarray(prompt, np.int32), np.asarray(response, np.int32), 1.25, math.inf)
    one = report(1)
    recorder.record(UpdateReport(one.step, one.identity, one.trained, one.metrics, one.seconds, (sample,)))
    [kept] = lines(tmp_path / "samples.jsonl")
    assert kept == {
        "kind": "best",
        "step": 1,
        "draw_index": 7,
        "prompt": "a good",
        "response": "film",
        "score": 1.25,
        "kl_seq_sum": None,
    }
