"""Learning curves with generation ahead of learning, against updates: what older samples cost.

    python -m deploy.bench.staleness_curve docs/images/staleness.png

A random policy of two layers learns to say one token, in one process and by the real loop, conductor, worker, reward
service and learner: only the scorer is of this file, as the task must be small enough for many seeds. No part of
`bench all`, for it measures learning, not speed.
"""

import copy
import itertools
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import Accelerator
from matplotlib.figure import Figure as Canvas
from prometheus_client import CollectorRegistry
from transformers import LlamaConfig, LlamaForCausalLM

from actors.engine import SamplingEngine
from actors.prompts import PromptStream
from actors.worker import RolloutWorker
from common.config import RunConfig
from common.config_file import load_config
from common.metrics import RunMetrics
from common.modeling import PolicyWithValueHead
from common.ports import Role
from common.records import Judgement, JudgementChunk, ReferenceChunk, RolloutChunk, Stats, UpdateReport
from common.seeds import seed_everything
from common.supervision import Ledger, Limits
from common.text import train_word_tokenizer
from deploy.bench.overlap import TINY
from deploy.bench.stand_ins import FixedSettings, NoCheckpoints
from deploy.evaluation.evaluations import NoEvaluations
from deploy.local import LocalLearner, LocalTransport
from deploy.ppo.chunk_flow import ChunkFlow
from deploy.ppo.conductor import Conductor
from deploy.ppo.pools import of_objects
from deploy.ppo.supervisor import Supervisor
from deploy.stop_signal import StopSignal
from deploy.stopwatch import Stopwatch
from learner.loop import train
from learner.ppo import PPOLearner
from learner.service import LearnerService
from reward_service.reference import Reference

STALENESS = (0, 1, 2, 4)
SEEDS = 5
UPDATES, BATCH, CHUNK = 40, 64, 32
VOCABULARY, EOS, WANTED = 23, 2, 7
HALF = 0.5
LAST = 5
"""Updates at the end whose mean score is told."""
Curves = Mapping[int, Sequence[Sequence[float]]]
"""By staleness, and seed by seed, the mean score of each update."""


class EmitToken:
    """A reward replica whose score is the share of one token in the response.

    Args:
        reference: of the KL penalty.
    """

    def __init__(self, reference: Reference) -> None:
        self._reference = reference

    def score(self, chunk: RolloutChunk) -> tuple[JudgementChunk, Stats]:
        """Count it."""
        scores = [float((r.response_ids == WANTED).mean()) for r in chunk.rollouts]
        judgements = tuple(
            Judgement(r.draw_index, r.sample_index, score, {}, "emit-token")
            for r, score in zip(chunk.rollouts, scores, strict=True)
        )
        return JudgementChunk(judgements), Stats(samples=len(scores), scores=tuple(scores))

    def reference(self, chunk: RolloutChunk) -> tuple[ReferenceChunk, Stats]:
        """The untrained policy's logprobs."""
        return self._reference.logprobs(chunk)

    def probe(self) -> dict[str, float]:
        """It needs no model."""
        return {}


class Scores:
    """A recorder that keeps the mean score of each update."""

    def __init__(self) -> None:
        self.means: list[float] = []

    def record(self, report: UpdateReport) -> None:
        """Keep it."""
        self.means.append(report.metrics["score_mean"])


def curves(seeds: int = SEEDS) -> Curves:
    """Learn with each staleness and seed."""
    return {staleness: [curve(staleness, seed) for seed in range(seeds)] for staleness in STALENESS}


def curve(staleness: int, seed: int) -> list[float]:
    """The mean score of each update of one run."""
    config = load_config(TINY, _changes(staleness, seed))
    assert config.ppo is not None, "tiny has a PPO stage"
    seed_everything(seed)
    policy, watch, scores = LlamaForCausalLM(_shape()), Stopwatch(), Scores()
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(LocalTransport(_members(policy), {"rollout": 1, "reward": 1})) as transport,
        closing(_supervisor(config, transport, watch)) as supervisor,
        closing(LocalLearner(lambda: _service(config, policy, Path(folder)), 1, watch)) as learner,
    ):
        supervisor.resize(workers=1, replicas=1)
        train(
            learner=learner,
            rollouts=supervisor,
            recorder=scores,
            steering=FixedSettings(config),
            evaluations=NoEvaluations(),
            checkpoints=NoCheckpoints(),
            config=config.ppo,
        )
    return scores.means


def _changes(staleness: int, seed: int) -> list[str]:
    return [
        f"seed={seed}",
        f"ppo.max_staleness={staleness}",
        f"ppo.updates={UPDATES}",
        f"ppo.trajectories_per_update={BATCH}",
        "ppo.minibatch_sequences=32",
        "ppo.microbatch_sequences=32",
        "ppo.epochs=4",
        "ppo.optimizer.lr=0.0015",
        "ppo.kl.type=fixed",
        "ppo.kl.coef=0.01",
        "ppo.response_tokens={min = 4, max = 8}",
        f"rollout.chunk_sequences={CHUNK}",
    ]


def _shape() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        max_position_embeddings=64, bos_token_id=None, eos_token_id=EOS, pad_token_id=0,
    )  # fmt: skip


def _members(policy: LlamaForCausalLM) -> dict[Role, Callable[[str], Any]]:
    """How worker and replica are built, by role."""

    def worker(slot: str) -> RolloutWorker:
        engine = SamplingEngine(copy.deepcopy(policy), frozenset({EOS}))
        return RolloutWorker(engine, fetch=lambda handle: handle.ref, name=slot)

    def replica(slot: str) -> EmitToken:
        return EmitToken(Reference(copy.deepcopy(policy), batch_sequences=CHUNK))

    return {"rollout": worker, "reward": replica}


def _service(config: RunConfig, policy: LlamaForCausalLM, folder: Path) -> LearnerService:
    assert config.ppo is not None, "tiny has a PPO stage"
    model = PolicyWithValueHead(copy.deepcopy(policy))
    learner = PPOLearner(model, config.ppo, run_seed=config.seed, accelerator=Accelerator(cpu=True))
    return LearnerService(learner, train_word_tokenizer(["a b"], vocabulary_size=VOCABULARY, max_tokens=16), folder)


def _supervisor(config: RunConfig, transport: LocalTransport, watch: Stopwatch) -> Supervisor:
    assert config.ppo is not None, "tiny has a PPO stage"
    texts = list(np.random.default_rng(0).integers(3, VOCABULARY, size=(50, 6)).astype(np.int32))
    prompts = PromptStream(
        texts, prompt_tokens=config.ppo.prompt_tokens, response_tokens=config.ppo.response_tokens, seed=config.seed
    )
    rollout = Limits.of(config.rollout, min_members=1, are_processes=False)
    reward = Limits.of(config.reward_service, min_members=1, are_processes=False)
    flow = ChunkFlow(
        config,
        prompts=prompts,
        rollout=of_objects(rollout, config.ppo),
        reward=of_objects(reward, config.ppo),
        with_reference=True,
        ledger=Ledger(),
    )
    metrics = RunMetrics(CollectorRegistry())
    return Supervisor(
        Conductor(flow), transport, metrics=metrics, watch=watch, stop=StopSignal(), note=lambda note: None
    )


def summary(found: Curves) -> str:
    """A table: the last updates' score; and updates until half the responses' tokens are the wanted one, with their
    difference to staleness 0 at the same seed.
    """
    rows = [f"staleness  last {LAST}  updates until {HALF}  later than 0: mean ± standard error over the seeds"]
    for staleness, runs in found.items():
        last = statistics.mean(statistics.mean(run[-LAST:]) for run in runs)
        reached = [updates_until(HALF, run) for run in runs]
        later = [one - updates_until(HALF, zero) for one, zero in zip(reached, found[0], strict=True)]
        error = statistics.stdev(later) / len(later) ** 0.5
        rows.append(
            f"{staleness:9}  {last:6.3f}  {statistics.mean(reached):17.1f}  {statistics.mean(later):+.2f} ± {error:.2f}"
        )
    return "\n".join(rows)


def updates_until(bar: float, run: Sequence[float]) -> float:
    """Where a curve first reaches a score, between two updates; all of them where it never does."""
    for number, (before, after) in enumerate(itertools.pairwise(run), 1):
        if after >= bar:
            return number + max(0.0, bar - before) / (after - before) if after > before else float(number)
    return float(len(run))


def draw(found: Curves, path: Path) -> None:
    """Means and ranges over the seeds."""
    canvas = Canvas(figsize=(7, 4), layout="constrained")
    axes = canvas.add_subplot()
    for staleness, runs in found.items():
        scores, updates = np.array(runs), np.arange(1, UPDATES + 1)
        [line] = axes.plot(updates, scores.mean(axis=0), label=f"max_staleness = {staleness}")
        axes.fill_between(updates, scores.min(axis=0), scores.max(axis=0), color=line.get_color(), alpha=0.12, lw=0)
    axes.set(xlabel="update", ylabel="share of the wanted token", ylim=(0, 1))
    axes.set_title(f"Mean and range of {SEEDS} seeds", fontsize=10)
    axes.legend(frameon=False)
    axes.grid(alpha=0.3)
    canvas.savefig(path, dpi=110)


def main() -> None:
    """Learn, draw, tell."""
    found = curves()
    draw(found, Path(sys.argv[1]))
    print(summary(found))


if __name__ == "__main__":
    main()
