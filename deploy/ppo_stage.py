"""The PPO and evaluation stages: wires members, conductor, recorder and loop, and writes what they measured."""

import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from prometheus_client import CollectorRegistry
from rich.console import Console
from transformers import PreTrainedTokenizerBase

from actors.evaluate import distinct_n, win_rate
from actors.prompt_texts import build_prompts
from actors.prompts import PromptStream
from common.config import RunConfig
from common.errors import DataError
from common.metrics import RunMetrics
from common.ports import Learner, Transport
from common.records import ChunkHandle, Identity, ModelPaths, Prompt, Rollout, StageResult
from common.text import decode, eos_token_ids, load_tokenizer
from deploy.conductor import Conductor
from deploy.metrics_server import serve_metrics
from deploy.progress import progress, stage_bar
from deploy.recorder import RunRecorder, append_json
from deploy.runtime import Members, Runtime
from learner.loop import train

FETCH_TIMEOUT_S = 120.0
BEFORE, AFTER = Identity(-1, 0), Identity(-1, 1)
"""Weights of an evaluation belong to no lineage of training."""


class FolderCheckpoints:
    """Implements `common.ports.Checkpoints`: a folder per step; the last one goes once the new one is whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._last: Path | None = None

    def save(self, learner: Learner) -> None:
        """Write a checkpoint of the learner."""
        path = self.folder / f"step_{learner.step:06d}"
        learner.save(path)
        if self._last is not None and self._last != path:
            shutil.rmtree(self._last)
        self._last = path


def ppo_stage(
    config: RunConfig, runtime: Runtime, folder: Path, paths: dict[str, str], console: Console
) -> StageResult:
    """Run PPO from the policy at `paths["policy"]`; leaves models/ppo, metrics, samples, trajectories, a checkpoint."""
    assert config.ppo is not None, "the pipeline runs the stages that the configuration names"
    _clear(folder, "metrics.jsonl", "trajectories", "checkpoints", "models/ppo", "summary.json")
    _clear_samples(folder, heldout=False)
    start = time.monotonic()
    models = ModelPaths(paths["policy"], paths["reward_model"])
    metrics = RunMetrics(CollectorRegistry())
    with ExitStack() as stack:
        stack.enter_context(serve_metrics(config.metrics, metrics.registry, folder, console))
        with console.status("ppo: starting workers, reward service and learner"):
            prompts = build_prompts(config, models)
            members = stack.enter_context(runtime.members(config, models, folder))
        assert members.learner is not None, "training has a learner"
        started = time.monotonic()
        conductor = _conductor(config, members, metrics, prompts)
        bar = stack.enter_context(progress(console))
        task = bar.add_task("ppo", total=config.ppo.updates, message="first update")
        tokenizer = load_tokenizer(models.policy)
        train(
            learner=members.learner,
            rollouts=conductor,
            recorder=RunRecorder(
                folder, tokenizer=tokenizer, conductor=conductor, metrics=metrics, watch=members.watch, bar=(bar, task)
            ),
            checkpoints=FolderCheckpoints(folder / "checkpoints"),
            config=config.ppo,
        )
        trained = time.monotonic()
        members.learner.export(folder / "models" / "ppo")
    return StageResult(
        {
            "updates": members.learner.step,
            "trajectories": conductor.ledger.trained,
            "ledger": conductor.ledger.as_dict(),
            "members": members.described,
            "runtime": runtime.name,
            "threads": {
                "rollout": config.rollout.threads,
                "reward_service": config.reward_service.threads,
                "learner": config.learner.threads,
            },
        },
        {"start": started - start, "train": trained - started, "export": time.monotonic() - trained},
    )


def _clear(folder: Path, *names: str) -> None:
    """Remove what an earlier attempt at the stage left."""
    for name in names:
        path = folder / name
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _clear_samples(folder: Path, *, heldout: bool) -> None:
    """Remove evaluation's lines of samples.jsonl, or PPO's: the other stage may be done and not run again."""
    path = folder / "samples.jsonl"
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.startswith('{"kind": "heldout"') != heldout]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def _conductor(config: RunConfig, members: Members, metrics: RunMetrics, prompts: PromptStream) -> Conductor:
    """Evaluation, which has no learner, measures KL whoever computes it in training."""
    assert config.ppo is not None, "a conductor is of a PPO stage"
    return Conductor(
        config,
        prompts=prompts,
        transport=members.transport,
        workers=members.workers,
        replicas=members.replicas,
        metrics=metrics,
        watch=members.watch,
        with_reference=config.ppo.reference == "service" or members.learner is None,
    )


@dataclass(frozen=True, slots=True)
class Answers:
    """Responses of one policy to the evaluation's prompts, judged. N prompts."""

    rollouts: list[Rollout]
    parts: dict[str, npt.NDArray[np.float64]]
    """[N] each, by name."""
    kl_seq_sum: npt.NDArray[np.float64]
    """[N] sampled KL to the policy before PPO, in nats."""


def evaluate_stage(
    config: RunConfig, runtime: Runtime, folder: Path, paths: dict[str, str], console: Console
) -> StageResult:
    """Compare the policies before and after PPO on held-out prompts, by the reward model and by the judge."""
    assert config.evaluate is not None, "the pipeline runs the stages that the configuration names"
    assert config.ppo is not None, "evaluation compares before and after PPO"
    start = time.monotonic()
    _clear_samples(folder, heldout=True)
    models = ModelPaths(paths["policy"], paths["reward_model"], paths["judge"])
    stream = build_prompts(config, models, heldout=True)
    if len(stream) < config.evaluate.prompts:
        raise DataError(
            f"evaluate.prompts={config.evaluate.prompts}, but {', '.join(config.ppo.data)} hold only {len(stream)} "
            "held-out texts that a prompt can begin; lower it, or raise heldout_fraction"
        )
    prompts = stream.take(config.evaluate.prompts)
    with (
        stage_bar(console, "evaluate") as show,
        runtime.members(config, models, folder) as members,
    ):
        show(0, 2, "before")
        conductor = _conductor(config, members, RunMetrics(CollectorRegistry()), stream)
        conductor.publish(members.weights_of(paths["policy"], BEFORE))
        before = _answers(members.transport, conductor.sample(prompts))
        show(1, 2, "after")
        conductor.publish(members.weights_of(paths["ppo"], AFTER))
        after = _answers(members.transport, conductor.sample(prompts))
    tokenizer = load_tokenizer(models.policy)
    _keep_texts(folder, tokenizer, prompts[: config.evaluate.shown], before, after)
    compared = compare(before, after, ignore=eos_token_ids(tokenizer), seed=config.seed)
    return StageResult({"prompts": len(prompts), **compared}, {"total": time.monotonic() - start})


def _answers(transport: Transport, chunks: Sequence[ChunkHandle]) -> Answers:
    rollouts, parts, kl = [], [], []
    for chunk in chunks:
        generated = transport.fetch(chunk.rollouts, FETCH_TIMEOUT_S).rollouts
        reference = transport.fetch(chunk.reference, FETCH_TIMEOUT_S).logprobs
        rollouts += generated
        parts += [j.parts for j in transport.fetch(chunk.judgements, FETCH_TIMEOUT_S).judgements]
        kl += [float((r.logprobs - ref).sum()) for r, ref in zip(generated, reference, strict=True)]
    columns = {name: np.array([p[name] for p in parts]) for name in parts[0]}
    return Answers(rollouts, columns, np.array(kl))


def compare(before: Answers, after: Answers, *, ignore: frozenset[int], seed: int) -> dict[str, Any]:
    """The numbers of summary.json that follow from the answers."""
    rate, interval = win_rate(before.parts["judge"], after.parts["judge"], seed=seed)
    numbers: dict[str, Any] = {}
    for when, answers in (("before", before), ("after", after)):
        numbers |= {
            f"reward_{when}": float(answers.parts["reward_model"].mean()),
            f"p_positive_{when}": float(answers.parts["reward_model_p_positive"].mean()),
            f"judge_p_positive_{when}": float(answers.parts["judge_p_positive"].mean()),
            f"distinct_2_{when}": distinct_n([r.response_ids for r in answers.rollouts], 2, ignore=ignore),
            f"response_tokens_{when}": float(np.mean([len(r.response_ids) for r in answers.rollouts])),
        }
    tokens = sum(len(r.response_ids) for r in after.rollouts)
    return numbers | {
        "kl_seq_sum": float(after.kl_seq_sum.mean()),
        "kl_token_mean": float(after.kl_seq_sum.sum() / tokens),
        "win_rate": rate,
        "win_rate_ci95": list(interval),
    }


def _keep_texts(
    folder: Path, tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], before: Answers, after: Answers
) -> None:
    for i, prompt in enumerate(prompts):
        append_json(
            folder / "samples.jsonl",
            {
                "kind": "heldout",
                "prompt": decode(tokenizer, prompt.token_ids),
                "before": decode(tokenizer, before.rollouts[i].response_ids),
                "after": decode(tokenizer, after.rollouts[i].response_ids),
                "score_before": before.parts["reward_model"][i],
                "score_after": after.parts["reward_model"][i],
                "judge_before": before.parts["judge_p_positive"][i],
                "judge_after": after.parts["judge_p_positive"][i],
            },
        )
