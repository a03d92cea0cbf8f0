"""What the pipeline needs of the place where a run runs: one process (`local.py`) or a Ray cluster (`cluster.py`)."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from common.config import RunConfig
from common.ports import Learner, Transport
from common.records import Identity, ModelPaths, Progress, StageResult, WeightsHandle
from deploy.runtime_facts import RuntimeFacts
from deploy.stopwatch import Stopwatch
from learner.stages import StageRequest


class ExportingLearner(Learner, Protocol):
    """A learner whose policy can be left on disk."""

    def export(self, folder: Path) -> None:
        """Leave the policy in Hugging Face's format."""


@dataclass(frozen=True, slots=True)
class Members:
    """The processes, or objects, of a PPO or evaluation stage."""

    transport: Transport
    workers: Sequence[str]
    replicas: Sequence[str]
    learner: ExportingLearner | None
    """None for evaluation."""
    weights_of: Callable[[str, Identity], WeightsHandle]
    """The weights of a model folder, as if they had been published."""
    watch: Stopwatch
    """Told how long the learner's calls take."""
    described: dict[str, dict[str, object]]
    """What each member said of itself at its start."""


class Runtime(Protocol):
    """A place to run."""

    name: str

    def facts(self) -> RuntimeFacts:
        """For the preflight."""

    def run_stage(self, request: StageRequest) -> Iterator[Progress | StageResult]:
        """Run a supervised stage where the learner's resources are."""

    def members(self, config: RunConfig, paths: ModelPaths, folder: Path) -> AbstractContextManager[Members]:
        """Start what PPO needs, or evaluation where `paths` names a judge; stop it at the end."""

    def close(self) -> None:
        """Leave nothing behind."""
