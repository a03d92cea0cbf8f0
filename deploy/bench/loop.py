"""Whole updates of PPO, as `minichatgpt run` does them: in one process, and on a local Ray cluster with its workers.

Of tiny.toml, and of the demo's models and batch with made-up texts in the place of its data. Each runs twice, as a
process of its own with `--trace`: first locally, which also makes the models that PPO starts from; then PPO again on
Ray, which is a start on a warm cache.
"""

import json
import statistics
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from common.config_file import parse_config, to_toml
from deploy.bench.figures import Figure
from deploy.bench.options import Options
from deploy.bench.own_session import run_alone
from deploy.bench.roofline import Roofline
from deploy.config_cli import find_config
from deploy.trace.run_trace import PREFETCH
from deploy.trace.trace_file import TRACE, read_trace

FIRST_ROLLOUT_S = 15.0
"""Longest time from the command to the first generated samples, of either shape."""
RUN_TIMEOUT_S = 120.0
TINY_UPDATES, DEMO_UPDATES = 13, 5
"""The first of each is not counted."""
NUM_WORDS, NUM_TEXTS, TEXT_WORDS = 2400, 600, 24
PHASES = ("collect", "update", "publish")
ROLES = {"worker": "workers", "replica": "replicas", "learner": "learner"}
"""By how the names of their rows in a trace begin."""
US = 1e6


@dataclass(frozen=True, slots=True)
class Measured:
    """One run."""

    began_unix_s: float
    """When its command was given."""
    rows: Sequence[Mapping[str, Any]]
    """Of metrics.jsonl."""
    events: Sequence[Mapping[str, Any]]
    """Of its trace."""


def measure(options: Options, roof: Roofline) -> list[Figure]:
    """Both shapes, locally and on Ray; takes no rounds, for each has several updates, and no limit of the machine."""
    figures = []
    for shape, document in (("tiny", tiny_document()), ("demo", demo_document())):
        with tempfile.TemporaryDirectory() as folder:
            for place, words in (("local", ["--local"]), ("ray", ["--again", "ppo"])):
                measured = run_traced(document, Path(folder), words)
                figures += figures_of(f"loop.{shape}.{place}", measured)
                if place == "ray":
                    figures.append(_first_rollout(shape, measured))
    return figures


def tiny_document() -> dict[str, Any]:
    """tiny.toml without its evaluation."""
    document = tomllib.loads(find_config("tiny").read_text(encoding="utf-8"))
    del document["evaluate"], document["judge"]
    document["ppo"]["updates"] = TINY_UPDATES
    return document


def demo_document() -> dict[str, Any]:
    """The demo's models, batch and placement; a few steps on made-up texts give the models their shapes."""
    document = tomllib.loads(find_config("demo").read_text(encoding="utf-8"))
    del document["evaluate"], document["judge"], document["sft"]
    words = np.random.default_rng(0).integers(NUM_WORDS, size=(NUM_TEXTS, TEXT_WORDS))
    texts = [" ".join(f"w{word}" for word in row) for row in words]
    labels = [number % 2 for number in range(NUM_TEXTS)]
    document["name"] = "loop"
    document["data"] = {"texts": {"type": "inline", "texts": texts, "labels": labels}}
    document["pretrain"] |= {"data": ["texts"], "epochs": 1, "heldout_texts": 20}
    document["reward_model"]["training"] |= {"data": ["texts"], "epochs": 1, "repeat": {}}
    document["ppo"] |= {"data": ["texts"], "updates": DEMO_UPDATES}
    return document


def run_traced(document: Mapping[str, Any], folder: Path, words: Sequence[str]) -> Measured:
    """Run a configuration in a process of its own.

    Raises:
        BenchmarkError: it failed or did not end; says what it said.
    """
    config = parse_config(document, where="bench loop")
    path = folder / "bench.toml"
    path.write_text(to_toml(config), encoding="utf-8")
    command = [sys.executable, "-m", "deploy", "run", str(path), "--runs", str(folder), "--trace", *words]
    began = time.time()
    run_alone(command, folder / "output.log", timeout_s=RUN_TIMEOUT_S)
    run = folder / config.name
    lines = (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return Measured(began, [json.loads(line) for line in lines], read_trace(run / TRACE))


def figures_of(case: str, measured: Measured) -> list[Figure]:
    """Speed, seconds by phase and idle shares after the first update."""
    rows = measured.rows[1:]
    total_s = statistics.median(row["seconds"]["total"] for row in rows)
    samples = statistics.median(row["metrics"]["trajectories"] for row in rows)
    tokens = statistics.median(row["metrics"]["response_tokens"] for row in rows)
    speed = [("steps", 1.0), ("samples", samples), ("tokens", tokens)]
    figures = [Figure(f"{case}.{what}", amount / total_s, f"{what}/s") for what, amount in speed]
    for phase in PHASES:
        seconds = statistics.median(row["seconds"].get(phase, 0.0) for row in rows)
        figures.append(Figure(f"{case}.{phase}", seconds, "s", share=seconds / total_s, limit="the update"))
    idle = idle_shares(measured.events)
    return figures + [Figure(f"{case}.idle.{role}", share, "share") for role, share in idle.items()]


def idle_shares(events: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """By role, the share of the time between the first and the last update in which its rows show no span."""
    spans = [event for event in events if event["ph"] == "X"]
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    ends = [span["ts"] + span["dur"] for span in spans if span["name"] == "update" and names[span["tid"]] == "learner"]
    begin, end = min(ends), max(ends)
    shares: dict[str, list[float]] = {}
    for tid, name in names.items():
        role = ROLES.get(name.partition("-")[0])
        if role is not None and PREFETCH not in name:
            inside = [_within(span, begin, end) for span in spans if span["tid"] == tid]
            shares.setdefault(role, []).append(1.0 - sum(inside) / (end - begin))
    return {role: statistics.mean(found) for role, found in shares.items()}


def _within(span: Mapping[str, Any], begin: float, end: float) -> float:
    overlap: float = min(span["ts"] + span["dur"], end) - max(span["ts"], begin)
    return max(0.0, overlap)


def _first_rollout(shape: str, measured: Measured) -> Figure:
    """From the command to the first generated samples."""
    (began,) = [event["args"]["unix_s"] for event in measured.events if event["name"] == "began"]
    first = min(e["ts"] + e["dur"] for e in measured.events if e["ph"] == "X" and e["name"] == "generate")
    return Figure(
        f"loop.{shape}.first_rollout",
        began + first / US - measured.began_unix_s,
        "s",
        must=FIRST_ROLLOUT_S,
        lower_is_better=True,
        note="from `run` on Ray to the first samples, earlier stages done",
    )
