"""The PPO stage: wires members, conductor, recorder and loop, and writes what they measured."""

import shutil
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from prometheus_client import CollectorRegistry
from rich.console import Console

from actors.prompt_texts import build_prompts
from actors.prompts import PromptStream
from common.checkpoint_store import CheckpointStore
from common.config import RunConfig
from common.metrics import RunMetrics
from common.records import ModelPaths, StageResult
from common.text import load_tokenizer
from deploy.checkpoint_writer import CheckpointWriter
from deploy.conductor import Conductor
from deploy.metrics_server import serve_metrics
from deploy.progress import progress
from deploy.recorder import RunRecorder
from deploy.resume import run_settings
from deploy.runtime import Members, Runtime
from learner.loop import train


def ppo_stage(
    config: RunConfig,
    runtime: Runtime,
    folder: Path,
    paths: dict[str, str],
    console: Console,
    *,
    inputs: Mapping[str, str],
) -> StageResult:
    """Run PPO from the policy at `paths["policy"]`; leaves models/ppo, metrics, samples, trajectories, checkpoints.

    `inputs` are the hashes of the models at `paths`.
    """
    assert config.ppo is not None, "the pipeline runs the stages that the configuration names"
    _clear(folder, "metrics.jsonl", "trajectories", "models/ppo", "summary.json")
    clear_samples(folder, heldout=False)
    checkpoints = _checkpoints(config, folder, inputs, console)
    start = time.monotonic()
    models = ModelPaths(paths["policy"], paths["reward_model"])
    metrics = RunMetrics(CollectorRegistry())
    with ExitStack() as stack:
        stack.callback(checkpoints.close)
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
                folder,
                tokenizer=tokenizer,
                conductor=conductor,
                metrics=metrics,
                watch=members.watch,
                bar=(bar, task),
                saw=checkpoints.saw,
            ),
            checkpoints=checkpoints,
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
            "threads": _threads(config),
        },
        {"start": started - start, "train": trained - started, "export": time.monotonic() - trained},
    )


def _threads(config: RunConfig) -> dict[str, int]:
    """CPU threads of a process, by role."""
    roles = {"rollout": config.rollout, "reward_service": config.reward_service, "learner": config.learner}
    return {role: placement.threads for role, placement in roles.items()}


def _checkpoints(config: RunConfig, folder: Path, inputs: Mapping[str, str], console: Console) -> CheckpointWriter:
    """A writer for a stage that begins anew."""
    assert config.ppo is not None, "checkpoints are of a PPO stage"
    store = CheckpointStore(
        config.ppo.checkpoint_url or str(folder / "checkpoints"),
        keep_last=config.ppo.keep_last,
        keep_best=config.ppo.keep_best,
    )
    store.clear()
    return CheckpointWriter(
        store,
        config.ppo,
        settings=lambda: run_settings(config, inputs),
        save_timeout_s=config.learner.save_timeout_s,
        warn=lambda message: console.print(f"[yellow]Caution:[/] {message}"),
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
