"""What the pipeline needs of the place where a run runs: one process (`local.py`) or a Ray cluster (`cluster.py`)."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from common.config import RunConfig
from common.ports import Learner, Transport
from common.records import Identity, ModelPaths, Progress, StageResult, WeightsHandle
from deploy.preflight.runtime_facts import RuntimeFacts
from deploy.stop_signal import StopSignal
from deploy.stopwatch import Stopwatch
from learner.stages import StageRequest


class HostedLearner(Learner, Protocol):
    """A learner with a life: it can be started again, go on from a checkpoint, and leave its policy on disk."""

    @property
    def described(self) -> dict[str, Any]:
        """Threads, node, process and memory."""

    def restart(self) -> None:
        """Another one in its place, as at the start of the stage."""

    def load(self, url: str | None, *, lineage: int) -> None:
        """Go on from a checkpoint, or from the weights before PPO where there is none, as a new lineage."""

    def export(self, folder: Path) -> None:
        """Leave the policy in Hugging Face's format."""


@dataclass(frozen=True, slots=True)
class Members:
    """The processes, or objects, of a PPO or evaluation stage."""

    transport: Transport
    """Starts workers and replicas when the supervisor asks for them."""
    learner: HostedLearner | None
    """None for evaluation."""
    weights_of: Callable[[str, Identity], WeightsHandle]
    """The weights of a model folder, as if they had been published."""
    watch: Stopwatch
    """Told how long the learner's calls take."""


class Runtime(Protocol):
    """A place to run."""

    name: str
    are_processes: bool
    """Whether members can die, hang and be killed one by one."""

    def facts(self) -> RuntimeFacts:
        """For the preflight."""

    def run_stage(self, request: StageRequest, stop: StopSignal) -> Iterator[Progress | StageResult]:
        """Run a supervised stage where the learner's resources are; raises RunStopped if somebody asks for the end."""

    def members(
        self, config: RunConfig, paths: ModelPaths, folder: Path, stop: StopSignal, *, with_learner: bool = True
    ) -> AbstractContextManager[Members]:
        """What PPO needs or, without a learner, evaluation; all is stopped at the end."""

    def close(self) -> None:
        """Leave nothing behind."""
