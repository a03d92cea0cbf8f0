"""The stages of a run, in order: what is done already is skipped, what each leaves is the next one's start.

base, pretrain ─▶ sft ─┬▶ ppo ─▶ evaluate ─▶ summary.json, report.html
reward_model ──────────┘          │            (a classifier of type `policy` starts from what sft left)
judge ────────────────────────────┘

`base` unpacks a GGUF file, where the model is one: it has no table, and is part of a run if its model is.
"""

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.markup import escape

from common.config import RunConfig
from common.config_file import to_toml
from common.hub import join_revision
from common.metrics import RunMetrics
from common.records import ModelPaths, Progress, StageResult
from common.run_place import share
from deploy.control.run_controls import RunControls
from deploy.evaluation.rivals import rival_path
from deploy.evaluation.stage import evaluate_stage
from deploy.fingerprint import fingerprint, folder_hash
from deploy.place import Place
from deploy.ppo.beginning import Beginning, find_beginning
from deploy.ppo.resume import run_settings
from deploy.ppo.stage import ppo_stage
from deploy.progress import stage_bar
from deploy.report.preferences import length_warning, preference_numbers
from deploy.run_folder.files import read_json, write_json
from deploy.run_folder.mirror import Mirror
from deploy.runtime import Runtime
from deploy.software import versions
from deploy.stage_names import STAGES, is_work, stages_of
from deploy.stop_signal import StopSignal
from deploy.trace.run_trace import RunTrace
from learner.stages import StageRequest

OUTPUT = {
    "base": "base",
    "pretrain": "pretrained",
    "sft": "sft",
    "reward_model": "reward_model",
    "judge": "judge",
    "ppo": "ppo",
}
"""Folder under models/ that a stage leaves."""


@dataclass(frozen=True, slots=True)
class Model:
    """A model to start from."""

    path: str
    hash: str
    """Of its content, or its name and revision where it comes from a hub."""


class Pipeline:
    """Runs the stages that a configuration names.

    Args:
        config: the run.
        folder: of the run.
        start_runtime: starts the place to run; called only if some stage is to be run.
        console: where progress goes.
        again: stages to run even if they are done.
        controls: told which stage runs; its stop signal ends the run between stages, or at a stage's next sign of life.
        metrics: told what Prometheus shall know.
        mirror: sends the run's files to where they belong; None: they are there.
        trace: draws the stages with pools.
    """

    def __init__(
        self,
        config: RunConfig,
        folder: Path,
        *,
        start_runtime: Callable[[], Runtime],
        console: Console,
        again: frozenset[str] = frozenset(),
        controls: RunControls | None = None,
        metrics: RunMetrics | None = None,
        mirror: Mirror | None = None,
        trace: RunTrace | None = None,
    ) -> None:
        self.config = config
        self.folder = folder
        self.console = console
        self.again = again
        self.controls = controls or RunControls(config.name, StopSignal())
        self.metrics = metrics or RunMetrics(CollectorRegistry())
        self.metrics.build(**versions())
        self.mirror = mirror or Mirror(folder, stop=self.controls.stop_signal, note=console.print)
        self.trace = trace
        self.stop = self.controls.stop_signal
        self._start_runtime = start_runtime
        self._runtime: Runtime | None = None

    @property
    def runtime(self) -> Runtime:
        """The place to run, started on first use."""
        if self._runtime is None:
            with self.console.status("starting"):
                self._runtime = self._start_runtime()
            self.metrics.run(self.config.name, self._runtime.name)
        return self._runtime

    def run(self) -> bool:
        """Run all stages; returns whether any had to be run; raises RunStopped if somebody asked the run to end."""
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            ran = [self._stage(stage) for stage in stages_of(self.config)]
        finally:
            if self._runtime is not None:
                self._runtime.close()
        self._take_folder()
        return any(ran)

    def _take_folder(self) -> None:
        """From here on the folder is of this configuration: records of stages that it does not name go."""
        (self.folder / "config.toml").write_text(to_toml(self.config), encoding="utf-8")
        for stage in ("base", *STAGES):
            if not is_work(self.config, stage):
                (self.folder / "stages" / f"{stage}.json").unlink(missing_ok=True)

    def _stage(self, stage: str) -> bool:
        self.stop.raise_if_requested()
        inputs = self._inputs(stage)
        mark = fingerprint(self.config, stage, {role: model.hash for role, model in inputs.items()})
        path = self.folder / "stages" / f"{stage}.json"
        output = self.folder / "models" / OUTPUT[stage] if stage in OUTPUT else None
        if stage not in self.again and _done(path, mark, output):
            self.console.print(f"[green]✓[/] {stage} [dim]done before, same inputs[/]")
            return False
        beginning = self._beginning(inputs) if stage == "ppo" else None
        self._take_folder()
        stale = [path, self.folder / "summary.json", self.folder / "report.html"]
        if stage == "ppo":  # cuts samples.jsonl back, evaluation's lines included
            stale.append(self.folder / "stages" / "evaluate.json")
        for file in stale:
            file.unlink(missing_ok=True)
        start = time.monotonic()
        result = self._cached(mark) if stage == "pretrain" and stage not in self.again else None
        from_cache = result is not None
        if result is None:
            with self.controls.in_stage(stage):
                result = self._run(stage, inputs, beginning)
        seconds = time.monotonic() - start
        record = {
            "stage": stage,
            "fingerprint": mark,
            "inputs": {role: model.hash for role, model in inputs.items()},
            "output_hash": folder_hash(output) if output else "",
            "from_cache": from_cache,
            "seconds": seconds,
            "seconds_by_phase": dict(result.seconds),
            "metrics": dict(result.metrics),
        }
        if stage == "pretrain" and not from_cache:
            self._keep(mark, record)
        write_json(path, record)
        self.mirror.stage_ended()
        self.console.print(f"[green]✓[/] {stage} [dim]{seconds:.0f} s{', from the cache' if from_cache else ''}[/]")
        if stage == "reward_model" and (warning := length_warning(preference_numbers(dict(result.metrics)))):
            self.console.print(f"[yellow]Caution:[/] {escape(warning)}", highlight=False)
        return True

    def _run(self, stage: str, inputs: dict[str, Model], beginning: Beginning | None) -> StageResult:
        paths = {role: model.path for role, model in inputs.items()}
        if stage in ("ppo", "evaluate"):
            place = Place(self.config, self.runtime, self.folder, self.console, self.stop, self.controls, self.metrics,
                          self.mirror.flush, self.trace)  # fmt: skip
            models = ModelPaths(paths["policy"], paths.get("reward_model"), self._judge(stage))
            if stage == "evaluate":
                rivals = {name: paths[f"against {name}"] for name in self._rivals()}
                return evaluate_stage(place, models, paths["ppo"], rivals)
            assert beginning is not None, "PPO begins somewhere"
            return ppo_stage(place, beginning, models)
        output = self.folder / "models" / OUTPUT[stage]
        shutil.rmtree(output, ignore_errors=True)
        request = StageRequest(stage, self.config, paths.get("policy"), str(output))
        runtime = self.runtime
        with stage_bar(self.console, stage, self.controls.progress) as show:
            for item in runtime.run_stage(request, self.stop):
                match item:
                    case Progress():
                        show(item.step, item.total, item.message)
                    case StageResult():
                        return item
        raise RuntimeError(f"{stage} ended without a result")

    def _beginning(self, inputs: dict[str, Model]) -> Beginning:
        """Where PPO starts; looked up before anything of an earlier run is removed."""
        return find_beginning(
            self.config,
            self.folder,
            run_settings(self.config, {role: model.hash for role, model in inputs.items()}),
            anew="ppo" in self.again,
            warn=lambda message: self.console.print(f"[yellow]Caution:[/] {escape(message)}", highlight=False),
        )

    def _inputs(self, stage: str) -> dict[str, Model]:
        """The models that a stage starts from."""
        match stage:
            case "base" | "pretrain":
                return {}
            case "reward_model" | "judge":
                starts_from_policy = getattr(self.config, stage).classifier.type == "policy"
                return {"policy": self._start_of_ppo()} if starts_from_policy else {}
            case "sft":
                return {"policy": self._base()}
            case "ppo":
                return {"policy": self._start_of_ppo(), **self._reward_model()}
            case _:
                return {
                    "policy": self._start_of_ppo(),
                    **self._reward_model(),
                    "judge": self._classifier("judge"),
                    "ppo": self._output("ppo"),
                    **{f"against {name}": self._named(path, None) for name, path in self._rivals().items()},
                }

    def _base(self) -> Model:
        model = self.config.model
        if model.type == "pretrained":
            return self._named(model.path, model.revision)
        return self._output("base" if model.type == "gguf" else "pretrain")

    def _start_of_ppo(self) -> Model:
        return self._output("sft") if self.config.sft is not None else self._base()

    def _reward_model(self) -> dict[str, Model]:
        """Where it is among the scorers."""
        return {"reward_model": self._classifier("reward_model")} if self.config.reward_service.has_model else {}

    def _judge(self, stage: str) -> str | None:
        """The judge of an evaluation, after PPO or within; it is no input of PPO, whose result it does not change."""
        table = self.config.evaluate
        return self._classifier("judge").path if table and (stage == "evaluate" or table.every_updates) else None

    def _rivals(self) -> dict[str, str]:
        """The models that `evaluate.against` names."""
        named = self.config.evaluate.against if self.config.evaluate is not None else []
        return {name: rival_path(name, self.folder.parent) for name in named}

    def _classifier(self, role: str) -> Model:
        table = getattr(self.config, role)
        if table.training is None:
            return self._named(table.classifier.path, table.classifier.revision)
        return self._output(role)

    @staticmethod
    def _named(path: str, revision: str | None) -> Model:
        folder = Path(path)
        name = join_revision(path, revision)
        return Model(name, folder_hash(folder) if folder.is_dir() else name)

    def _output(self, stage: str) -> Model:
        record = read_json(self.folder / "stages" / f"{stage}.json")
        return Model(str(self.folder / "models" / OUTPUT[stage]), record["output_hash"])

    def _cache(self, mark: str) -> Path:
        return self.folder.parent / ".cache" / f"pretrain-{mark}"

    def _cached(self, mark: str) -> StageResult | None:
        """A pre-trained model of another run with the same inputs."""
        cache = self._cache(mark)
        if not (cache / "stage.json").is_file():
            return None
        output = self.folder / "models" / OUTPUT["pretrain"]
        shutil.rmtree(output, ignore_errors=True)
        shutil.copytree(cache / "model", output)
        share(output)
        record = read_json(cache / "stage.json")
        return StageResult(record["metrics"], record["seconds_by_phase"])

    def _keep(self, mark: str, record: dict[str, Any]) -> None:
        """Put a pre-trained model where other runs find it; stage.json is written last."""
        cache = self._cache(mark)
        shutil.rmtree(cache, ignore_errors=True)
        shutil.copytree(self.folder / "models" / OUTPUT["pretrain"], cache / "model")
        write_json(cache / "stage.json", record)


def _done(path: Path, mark: str, output: Path | None) -> bool:
    """Whether the stage ended with the same inputs, and the model that it left is still as it was."""
    if not path.is_file():
        return False
    record = read_json(path)
    is_whole = output is None or record.get("output_hash") == folder_hash(output)
    return record.get("fingerprint") == mark and is_whole
