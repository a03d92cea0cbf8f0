"""The PPO stage: wires members, conductor, recorder and loop, and writes what they measured."""

import shutil
import time
from contextlib import ExitStack
from pathlib import Path

from prometheus_client import CollectorRegistry
from rich.console import Console

from actors.prompt_texts import build_prompts
from actors.prompts import PromptStream
from common.config import RunConfig
from common.metrics import RunMetrics
from common.ports import Learner
from common.records import ModelPaths, StageResult
from common.text import load_tokenizer
from deploy.conductor import Conductor
from deploy.metrics_server import serve_metrics
from deploy.progress import progress
from deploy.recorder import RunRecorder
from deploy.run_controls import RunControls
from deploy.runtime import Members, Runtime
from learner.loop import train


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
    config: RunConfig, runtime: Runtime, folder: Path, paths: dict[str, str], console: Console, controls: RunControls
) -> StageResult:
    """Run PPO from the policy at `paths["policy"]`; leaves models/ppo, metrics, samples, trajectories, a checkpoint."""
    assert config.ppo is not None, "the pipeline runs the stages that the configuration names"
    _clear(folder, "metrics.jsonl", "trajectories", "checkpoints", "models/ppo", "summary.json")
    clear_samples(folder, heldout=False)
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
        conductor = make_conductor(config, members, metrics, prompts)
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


def clear_samples(folder: Path, *, heldout: bool) -> None:
    """Remove evaluation's lines of samples.jsonl, or PPO's: the other stage may be done and not run again."""
    path = folder / "samples.jsonl"
    if path.is_file():
        lines = path.read_text(encoding="utf-8").splitlines()
        kept = [line for line in lines if line.startswith('{"kind": "heldout"') != heldout]
        path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")


def make_conductor(config: RunConfig, members: Members, metrics: RunMetrics, prompts: PromptStream) -> Conductor:
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
