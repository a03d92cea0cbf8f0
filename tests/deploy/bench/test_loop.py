"""The benchmark of whole updates: its configurations, the promise of a quick start, and what a failing run becomes."""

import sys

import pytest

from common.config_file import parse_config
from common.errors import BenchmarkError
from deploy.bench import loop
from deploy.bench.options import Options
from deploy.bench.roofline import Roofline


def measured(first_s):
    """A run that began half a second after its command, with updates of two seconds."""
    us = loop.US
    spans = [
        {"ph": "X", "name": "generate", "tid": 1, "ts": (first_s - 1.5) * us, "dur": 1.0 * us},
        *({"ph": "X", "name": "update", "tid": 2, "ts": at * us, "dur": 1.0 * us} for at in (20.0, 22.0)),
    ]
    names = [
        {"ph": "M", "name": "thread_name", "tid": tid, "args": {"name": name}}
        for tid, name in ((1, "worker-0"), (2, "learner"))
    ]
    row = {"seconds": {"total": 2.0, "update": 1.0}, "metrics": {"trajectories": 32.0, "response_tokens": 640.0}}
    began = {"ph": "i", "name": "began", "args": {"unix_s": 1000.5}}
    return loop.Measured(1000.0, [row, row], [began, *names, *spans])


def test_both_shapes_promise_a_quick_start_on_a_warm_cache(monkeypatch):
    ran = []

    def run_traced(document, folder, words):
        ran.append((document["name"], words))
        return measured(first_s=14.0 if document["name"] == "tiny" else 16.0)

    monkeypatch.setattr(loop, "run_traced", run_traced)
    figures = {figure.name: figure for figure in loop.measure(Options(), Roofline(1.0, 1.0, 1))}
    assert ran == [(name, words) for name in ("tiny", "loop") for words in (["--local"], ["--again", "ppo"])]
    first = [figures[f"loop.{shape}.first_rollout"] for shape in ("tiny", "demo")]
    assert [(figure.value, figure.must, figure.is_met) for figure in first] == [(14.0, 15.0, True), (16.0, 15.0, False)]
    assert figures["loop.demo.ray.samples"].value == 16.0
    assert figures["loop.demo.ray.idle.learner"].value == 0.5


def test_what_a_run_says_is_told_where_it_fails(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(BenchmarkError, match=r"false -m deploy run .*bench\.toml .*failed with exit code 1"):
        loop.run_traced(loop.tiny_document(), tmp_path, ["--local"])


@pytest.mark.parametrize("document", [loop.tiny_document, loop.demo_document])
def test_the_configurations_are_valid(document):
    assert parse_config(document(), where="a test").ppo is not None
