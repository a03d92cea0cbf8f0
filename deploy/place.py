"""What every stage with pools is given: where it runs, and who watches and steers it."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from common.config import RunConfig
from common.metrics import RunMetrics
from deploy.control.run_controls import RunControls
from deploy.runtime import Runtime
from deploy.stop_signal import StopSignal
from deploy.trace.run_trace import RunTrace


def _nothing() -> None:
    """They are there."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a stage runs and what it talks to."""

    config: RunConfig
    runtime: Runtime
    folder: Path
    """Of the run."""
    console: Console
    stop: StopSignal
    controls: RunControls
    metrics: RunMetrics
    """Of the whole run, whichever stage it is in."""
    send: Callable[[], None] = _nothing
    """Brings the run's files to where they belong, before a checkpoint counts for which they are needed."""
    trace: RunTrace | None = None
    """Draws what happens; None: nobody wants to see it."""

    def drawn(self, name: str) -> AbstractContextManager[None]:
        """What happens inside is a span in the driver's row of the trace, if there is one."""
        return nullcontext() if self.trace is None else self.trace.starting(name)
