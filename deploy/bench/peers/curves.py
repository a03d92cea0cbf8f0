"""The benchmark `curves`: whether a policy learns as fast by ours as by TRL's PPO, for each sample and each second.

A small fresh model is paid for the share of its tokens whose id divides by four. Same weights, prompts, reward and
hyperparameters; noise and order are each library's own, so that several seeds are needed. The trainers take turns, so
that seconds are comparable. Leaves `peers.csv` and `peers.png`.
"""

import csv
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import astuple, dataclass, fields
from pathlib import Path

import torch
from rich.console import Console
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

from common.modeling import without_dropout
from common.seeds import seed_everything
from deploy.bench.figures import Figure
from deploy.bench.options import Options
from deploy.bench.peers.children import Child
from deploy.bench.peers.comparison import CLASSIC, EXPERIMENTAL, OURS, OURS_OWN_VALUE, TRL, VARIANTS, at_work
from deploy.bench.peers.curve_plot import plot
from deploy.bench.peers.programs.task import Task
from deploy.bench.roofline import Roofline

SEEDS = (1, 2, 3)
STEPS = 48
LEARNING_RATE, KL_COEF = 6e-4, 0.02
LEARNERS = (OURS, OURS_OWN_VALUE, CLASSIC, EXPERIMENTAL)
LEAST_SHARE = 0.97
"""Of TRL's mean reward over all trajectories, ours must be at least: 1, less what seeds leave uncertain."""
ALIKE = {(OURS, CLASSIC), (OURS_OWN_VALUE, EXPERIMENTAL)}
"""Who has the same networks: values on the policy's trunk, or on one of their own."""


@dataclass(frozen=True, slots=True)
class Point:
    """One step of one learner: a row of the table."""

    learner: str
    seed: int
    step: int
    trajectories: int
    """Sampled so far, this step's included."""
    seconds: float
    """Of this learner's own steps so far."""
    score: float
    """Mean reward of the step's samples."""
    kl: float
    """To the reference, in nats per sample."""


def small_policy(seed: int) -> PreTrainedModel:
    """A model that learns within a minute."""
    shape = LlamaConfig(
        vocab_size=512, hidden_size=128, intermediate_size=344, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=64, tie_word_embeddings=True, bos_token_id=None, eos_token_id=None, pad_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        seed_everything(seed)
        return without_dropout(LlamaForCausalLM(shape))


def learn(children: Mapping[str, Child], task: Task) -> list[Point]:
    """All steps of one seed, the learners in turns."""
    points, seconds = [], dict.fromkeys(children, 0.0)
    for step in range(1, task.steps + 1):
        for name in list(children)[:: 1 if step % 2 else -1]:
            times = children[name].step()
            seconds[name] += times.total
            kl = float("nan") if times.kl is None else times.kl
            points.append(Point(name, task.seed, step, step * task.batch, seconds[name], times.score, kl))
    return points


def figures_of(points: Sequence[Point]) -> list[Figure]:
    """Mean reward over all trajectories, of each; that of ours as a share of each other's, and the seconds likewise."""
    names = list(dict.fromkeys(point.learner for point in points))
    means = {name: _mean_scores(points, name) for name in names}
    seconds = {name: [p.seconds for p in points if p.learner == name and p.step == _last(points)] for name in names}
    figures = []
    for name in names:
        spread = statistics.stdev(means[name]) if len(means[name]) > 1 else 0.0
        note = f"over all trajectories; ± {spread:.3f} between {len(means[name])} seeds"
        figures.append(Figure(f"curves.{name}.score_mean", statistics.fmean(means[name]), "reward", note=note))
        last = [p.score for p in points if p.learner == name and p.step > 0.9 * _last(points)]
        figures.append(Figure(f"curves.{name}.score_last", statistics.fmean(last), "reward", note="last tenth"))
        figures.append(Figure(f"curves.{name}.seconds", statistics.fmean(seconds[name]), "s", note="all steps"))
    for ours, theirs in [(a, b) for a in names if a in VARIANTS for b in names if b in TRL]:
        ratio = statistics.fmean(means[ours]) / statistics.fmean(means[theirs])
        is_alike = (ours, theirs) in ALIKE
        networks = "the same networks" if is_alike else "other networks"
        note = f"mean reward over all trajectories; the same hyperparameters, {networks}"
        must = LEAST_SHARE if is_alike else None
        figures.append(Figure(f"curves.{ours}.over-{theirs}", ratio, "x", must=must, note=note))
    return figures


def _last(points: Sequence[Point]) -> int:
    return max(point.step for point in points)


def _mean_scores(points: Sequence[Point], name: str) -> list[float]:
    """Of each seed."""
    seeds = dict.fromkeys(point.seed for point in points)
    return [statistics.fmean(p.score for p in points if p.learner == name and p.seed == seed) for seed in seeds]


def write_table(points: Sequence[Point], path: Path) -> None:
    """As CSV."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([field.name for field in fields(Point)])
        writer.writerows([*astuple(point)[:4], *(f"{value:.6g}" for value in astuple(point)[4:])] for point in points)


def measure(options: Options, _roof: Roofline) -> list[Figure]:
    """Let all learn for a few minutes, and leave table and picture."""
    console, points = Console(stderr=True), []
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in SEEDS:
        task = Task(
            steps=STEPS, seed=seed, reward="token_share", learning_rate=LEARNING_RATE, kl_coef=KL_COEF, threads=1
        )
        with at_work(LEARNERS, small_policy(seed), task, options.cache, console) as children:
            points += learn(children, task)
        console.print(f"seed {seed}: " + ", ".join(f"{p.learner} {p.score:.3f}" for p in points[-len(LEARNERS) :]))
    write_table(points, options.out / "peers.csv")
    plot(points, options.out / "peers.png")
    return figures_of(points)
