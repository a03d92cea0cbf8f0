"""Ours as a peer among peers: worker, reference, reward and learner in one process, as `run --local` has them.

A program that is told by its measurer when to do a step, as those of `programs/`, but run in our own environment.
"""

import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from accelerate import Accelerator

from actors.engine import SamplingEngine
from actors.worker import RolloutWorker
from common.freed_memory import keep_freed_memory
from common.kl_config import FixedKL
from common.modeling import PolicyWithValueHead, load_policy, twin_trunk
from common.optimizer_config import AdamW
from common.ppo_config import PPOConfig
from common.records import GenerateRequest, Judgement, Prompt, RolloutChunk, Trajectory
from deploy.bench.peers.programs.judging import judge_ids, load_judge
from deploy.bench.peers.programs.task import Task, read_prompts
from deploy.bench.peers.programs.turns import Turns
from learner.ppo import PPOLearner
from reward_service.reference import Reference

VARIANTS: dict[str, dict[str, Any]] = {
    "all-layers": {"reference": "service"},
    "top-2": {"reference": "shared_trunk", "trainable_layers": 2},
    "own-value": {"reference": "service", "value_network": "own"},
}
"""What differs from one of ours to the next."""


def config_of(task: Task, variant: str) -> PPOConfig:
    """The same hyperparameters in our words."""
    return PPOConfig(
        data=["prompts"],
        updates=task.steps,
        trajectories_per_update=task.batch,
        minibatch_sequences=task.minibatch,
        epochs=task.epochs,
        optimizer=AdamW(lr=task.learning_rate, betas=(task.beta1, task.beta2)),
        lr_schedule="constant",
        max_grad_norm=float("inf"),
        gamma=task.gamma,
        gae_lambda=task.gae_lambda,
        clip_eps=task.clip_eps,
        value_clip_eps=task.value_clip_eps,
        value_coef=task.value_coef,
        kl=FixedKL(coef=task.kl_coef),
        **VARIANTS[variant],
    )


class OurStep:
    """All that a step needs.

    Args:
        folder: the work folder.
        task: that of the folder.
        turns: told how long phases take.
        variant: one of `VARIANTS`.
    """

    def __init__(self, folder: Path, task: Task, turns: Turns, variant: str) -> None:
        self.task = task
        self.turns = turns
        self.prompts = read_prompts(folder)
        self.judge = load_judge(folder, task)
        policy = str(folder / "policy")
        engine = SamplingEngine(load_policy(policy), frozenset())
        self.worker = RolloutWorker(engine, fetch=lambda handle: handle.ref)
        config = config_of(task, variant)
        self.reference = None
        if config.reference == "service":
            self.reference = Reference(load_policy(policy), batch_sequences=task.batch)
        learned = load_policy(policy)
        value_trunk = twin_trunk(learned) if config.value_network == "own" else None
        model = PolicyWithValueHead(learned, value_trunk=value_trunk)
        self.learner = PPOLearner(model, config, run_seed=task.seed, accelerator=Accelerator(cpu=True))

    def step(self, number: int) -> tuple[float, float]:
        """Publish, generate, judge, learn; returns mean score and KL of the samples."""
        with self.turns.phase("generation"):
            chunk = self._generate(number)
        with self.turns.phase("forward"):
            trajectories = self._judge(chunk)
        start = time.perf_counter()
        report = self.learner.update(trajectories)
        spent = time.perf_counter() - start
        self.turns.add("forward", min(spent, report.seconds["prepare"]))  # the pass for old logprobs and values
        return report.metrics["score_mean"], report.metrics["kl_seq_sum"]

    def _generate(self, number: int) -> RolloutChunk:
        first = number * self.task.batch
        prompts = tuple(
            Prompt(
                draw_index=i, prompt_id=i, token_ids=np.array(ids, np.int32), max_new_tokens=self.task.response_tokens
            )
            for i, ids in enumerate(self.prompts[first : first + self.task.batch], start=first)
        )
        request = GenerateRequest(
            chunk_index=number, attempt=0, prompts=prompts, fill=0, run_seed=self.task.seed, temperature=1.0,
            weights=self.learner.weights(),
        )  # fmt: skip
        chunk, _ = self.worker.generate(request)
        return chunk

    def _judge(self, chunk: RolloutChunk) -> list[Trajectory]:
        """Scores and, where the learner has no reference of its own, that of the service."""
        pairs = list(zip(chunk.prompts, chunk.rollouts, strict=True))
        ids = np.stack([np.concatenate([p.token_ids, r.response_ids]) for p, r in pairs]).astype(np.int64)
        scores = judge_ids(self.judge, torch.from_numpy(ids)).tolist()
        refs = [None] * len(pairs) if self.reference is None else self.reference.logprobs(chunk)[0].logprobs
        return [
            Trajectory(p, r, Judgement(r.draw_index, r.sample_index, score, {"reward": score}, "peers"), ref)
            for (p, r), score, ref in zip(pairs, scores, refs, strict=True)
        ]


def main(folder: Path, variant: str) -> None:
    """Steps as they are asked for."""
    task, turns = Task.read(folder), Turns.of_this_process()
    torch.set_num_threads(task.threads)
    keep_freed_memory()
    ours = OurStep(folder, task, turns, variant)
    turns.ready(transformers=transformers.__version__, torch=torch.__version__)
    turns.run(ours.step)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else "all-layers")
