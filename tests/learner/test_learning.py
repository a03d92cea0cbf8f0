"""A tiny policy learns "emit token k" through the whole loop, in one process; with shuffled scores it does not.

Conductor, supervisor, workers, reward service, learner and loop are the real ones, wired as `deploy/local.py` wires
them; only the scorer is of this file.
"""

import copy
import time
from contextlib import closing

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from actors.engine import SamplingEngine
from actors.prompts import PromptStream
from actors.worker import RolloutWorker
from common.config import RunConfig
from common.metrics import RunMetrics
from common.records import Judgement, JudgementChunk, Stats
from common.run_settings import RunSettings
from common.seeds import sample_seed
from common.supervision import Ledger, Limits
from common.text import train_word_tokenizer
from deploy.evaluation.evaluations import NoEvaluations
from deploy.local import LocalLearner, LocalTransport
from deploy.ppo.chunk_flow import ChunkFlow
from deploy.ppo.conductor import Conductor
from deploy.ppo.supervisor import Supervisor
from deploy.stop_signal import StopSignal
from deploy.stopwatch import Stopwatch
from learner.loop import train
from learner.service import LearnerService
from learner.trajectory_file import read_trajectories
from reward_service.reference import Reference
from reward_service.service import RewardService

EOS, WANTED = 2, 7
UPDATES, BATCH, CHUNK = 25, 64, 32
BAR = 0.6
"""Mean share of the wanted token in the last three updates; a uniform policy has 1/23."""


class EmitToken:
    """The score is the share of the wanted token in the response; a control deals the scores of a chunk anew."""

    def __init__(self, shuffle):
        self.shuffle = shuffle

    def judge(self, chunk):
        scores = np.array([float((r.response_ids == WANTED).mean()) for r in chunk.rollouts])
        if self.shuffle:
            scores = np.random.default_rng(chunk.rollouts[0].draw_index).permutation(scores)
        judgements = tuple(
            Judgement(r.draw_index, r.sample_index, float(s), {"emit": float(s)}, "emit-token")
            for r, s in zip(chunk.rollouts, scores, strict=True)
        )
        return JudgementChunk(judgements), Stats(samples=len(judgements), score_sum=float(scores.sum()))

    def probe(self):
        return {"emit": 1.0}


class AsConfigured:
    """Steering that changes nothing."""

    def __init__(self, config):
        self._settings = RunSettings.of(config)

    def at(self, step):
        return self._settings


class Remembering:
    """A recorder that keeps the reports; also the checkpoints, of which there is nothing to keep."""

    def __init__(self):
        self.reports = []

    def record(self, report):
        self.reports.append(report)

    def due(self, step):
        assert step == len(self.reports)
        return False

    def wait(self):
        assert self.reports


@pytest.fixture
def learn(tiny_policy, make_learner, ppo_config, tmp_path):
    def run(*, shuffle=False, workers=1, updates=UPDATES, name="run", **settings):
        settings = {
            "updates": updates,
            "trajectories_per_update": BATCH,
            "minibatch_sequences": 32,
            "epochs": 4,
            "optimizer": {"type": "adamw", "lr": 1e-2},
            "reference": "service",
            "kl": {"type": "fixed", "coef": 0.01},
            "response_tokens": {"min": 4, "max": 8},
        } | settings
        config = RunConfig.model_validate(
            {
                "name": "emit",
                "data": {"texts": {"type": "inline", "texts": ["unused"]}},
                "model": {"type": "pretrained", "path": "unused"},
                "reward_model": {"classifier": {"type": "pretrained", "path": "unused"}},
                "ppo": ppo_config(**settings).model_dump(),
                "rollout": {"workers": workers, "chunk_sequences": CHUNK},
            }
        )
        policy = tiny_policy(sharpness=1.0)
        watch, recorder, notes = Stopwatch(), Remembering(), []
        service = LearnerService(
            make_learner(policy, config.ppo),
            train_word_tokenizer(["a b"], vocabulary_size=23, max_tokens=16),
            tmp_path / name,
        )

        def replica(slot):
            reference = Reference(copy.deepcopy(policy), batch_sequences=32)
            return RewardService(EmitToken(shuffle), reference)

        def worker(slot):
            engine = SamplingEngine(copy.deepcopy(policy), frozenset({EOS}))
            return RolloutWorker(engine, fetch=lambda handle: handle.ref, name=slot)

        texts = list(np.random.default_rng(0).integers(3, 23, size=(50, 6)).astype(np.int32))
        conductor = Conductor(
            ChunkFlow(
                config,
                prompts=PromptStream(
                    texts, prompt_tokens=config.ppo.prompt_tokens, response_tokens=config.ppo.response_tokens, seed=0
                ),
                rollout=Limits.of(config.rollout, min_members=1, are_processes=False),
                reward=Limits.of(config.reward_service, min_members=1, are_processes=False),
                with_reference=config.ppo.reference == "service",
                ledger=Ledger(),
            )
        )
        with (
            closing(LocalTransport({"rollout": worker, "reward": replica}, {"rollout": 1, "reward": 1})) as transport,
            closing(
                Supervisor(
                    conductor,
                    transport,
                    metrics=RunMetrics(CollectorRegistry()),
                    watch=watch,
                    stop=StopSignal(),
                    note=notes.append,
                )
            ) as rollouts,
            closing(LocalLearner(lambda: service, 1, watch)) as learner,
        ):
            rollouts.resize(workers=workers, replicas=1)
            train(
                learner=learner,
                rollouts=rollouts,
                recorder=recorder,
                steering=AsConfigured(config.ppo),
                checkpoints=recorder,
                evaluations=NoEvaluations(),
                config=config.ppo,
            )
            ledger = rollouts.ledger()
        assert ledger.trained == ledger.dispatched == updates * BATCH
        assert {note.event for note in notes} == {"active"}, "nobody was lost"
        return recorder.reports, service

    return run


def last_scores(reports):
    return np.mean([r.metrics["score_mean"] for r in reports[-3:]])


def test_a_random_policy_learns_to_emit_a_token(learn):
    start = time.monotonic()
    reports, _ = learn()
    assert reports[0].metrics["score_mean"] < 0.15
    assert last_scores(reports) > BAR
    assert all(r.metrics["logprob_gap_max"] < 1e-4 for r in reports)  # weights arrive before every batch
    assert all(r.metrics["nonfinite_steps"] == 0 for r in reports)
    assert reports[-1].metrics["kl_token_mean"] > 0.1
    assert time.monotonic() - start < 300


KL_IN_THE_LOSS = {"kl": {"type": "fixed", "coef": 0.0}, "kl_loss_coef": 0.01}
GROUP_NORM = {"advantage": "group_norm", **KL_IN_THE_LOSS}


@pytest.mark.parametrize("settings", [{"advantage": "gae"}, {"advantage": "rloo"}, GROUP_NORM])
def test_it_learns_from_groups_too(learn, settings):
    reports, service = learn(
        updates=12,
        samples_per_prompt=4,
        microbatch_tokens=200,
        lr_schedule="cosine",
        lr_final_fraction=0.2,
        clip_eps_high=0.28,
        dual_clip=3.0,
        **settings,
    )
    assert reports[0].metrics["score_mean"] < 0.15
    assert last_scores(reports) > BAR
    assert all(r.metrics["nonfinite_steps"] == 0 for r in reports)
    head = service.learner.plain.value_head.weight.detach()
    assert (float(head.abs().max()) > 0) == (settings["advantage"] == "gae"), "no value loss, no step of the head"
    columns = read_trajectories(service.folder / "trajectories" / "update_000002.safetensors")
    assert columns["draw_index"].tolist() == [draw for draw in range(16, 32) for _ in range(4)]
    assert columns["sample_index"].tolist() == [0, 1, 2, 3] * 16
    assert columns["samples_per_prompt"].tolist() == [4] * BATCH
    assert columns["seed"].tolist() == [sample_seed(0, draw, k) for draw in range(16, 32) for k in range(4)]


def test_with_shuffled_scores_it_does_not(learn):
    reports, _ = learn(shuffle=True)
    assert last_scores(reports) < 0.2


def test_a_strong_kl_penalty_keeps_the_policy_with_its_reference(learn):
    free, bound = (learn(name=str(c), updates=10, kl={"type": "fixed", "coef": c})[0] for c in (0.0, 1.0))
    assert bound[-1].metrics["kl_token_mean"] < 0.25 * free[-1].metrics["kl_token_mean"]


@pytest.mark.parametrize(
    "groups", [{}, {"advantage": "rloo", "samples_per_prompt": 4}, {**GROUP_NORM, "samples_per_prompt": 2}]
)
def test_one_two_and_three_workers_give_the_same_bytes(learn, groups):
    """Trap 19, 20: files and final weights, over updates whose weights differ."""
    files, weights = [], []
    for workers in (1, 2, 3):
        _, service = learn(workers=workers, updates=3, name=f"workers-{workers}", **groups)
        folder = service.folder / "trajectories"
        files.append({p.name: p.read_bytes() for p in sorted(folder.iterdir())})
        weights.append(service.weights().hash)
    assert len(files[0]) == 3
    assert len(set(files[0].values())) == 3
    assert files[0] == files[1] == files[2]
    assert len(set(weights)) == 1
