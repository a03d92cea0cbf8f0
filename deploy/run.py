"""From a checked configuration to a finished run folder: what `minichatgpt run` does after parsing."""

import functools
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from jinja2 import TemplateError
from prometheus_client import CollectorRegistry
from rich.console import Console
from rich.markup import escape

from common.config import RunConfig
from common.errors import MiniChatGPTError, RunStopped
from common.metrics import RunMetrics
from deploy.checked_runtime import checked_runtime
from deploy.console import print_summary
from deploy.control.run_controls import RunControls
from deploy.control.server import serve_control
from deploy.pipeline import Pipeline
from deploy.preflight.models import check_data
from deploy.report.summary import write_summary
from deploy.run_folder.address import RecordEnd, announce
from deploy.run_folder.event_log import EventLog
from deploy.run_folder.lock import run_lock
from deploy.run_folder.mirror import Mirror
from deploy.runtime import Runtime
from deploy.stage_names import check_again
from deploy.stop_signal import StopSignal, handle_signals
from deploy.trace.run_trace import RunTrace
from deploy.trace.trace_file import TRACE, TraceFile

if TYPE_CHECKING:
    from deploy.on_ray.early_actors import EarlyActors


def run_pipeline(
    config: RunConfig,
    folder: Path,
    *,
    local: bool,
    address: str | None,
    again: frozenset[str],
    insecure: bool = False,
    early: "EarlyActors | None" = None,
    with_trace: bool = False,
) -> None:
    """Run the pipeline, then write and show summary and report.

    Where `start_early` has started the cluster, `early` is what it returned; `with_trace` leaves trace.json too.

    Raises:
        ConfigError: `again` names no stage of the configuration.
        RunInUseError: another process works in the folder.
        RunStopped: somebody asked the run to end.
    """
    check_again(config, again)
    _quiet()
    console = Console()
    for caution in cautions(config):
        _warn(console, caution)
    folder = folder.absolute()
    controls = RunControls(config.name, StopSignal())
    metrics = RunMetrics(CollectorRegistry())
    log = EventLog(folder, console, count=metrics.event)

    def start_runtime() -> Runtime:
        runtime = checked_runtime(config, folder, local=local, address=address, warn=functools.partial(_warn, console),
                                  insecure=insecure, early=early)  # fmt: skip
        handlers.enter_context(handle_signals(controls.stop_signal))  # ray.init has put its own in their place
        return runtime

    with (
        run_lock(folder),
        Mirror(folder, stop=controls.stop_signal, note=functools.partial(log.write, "storage")) as mirror,
        handle_signals(controls.stop_signal),
        report_if_stopped(folder, console),
        RecordEnd(folder),
        ExitStack() as handlers,
        announce(folder),
        _served(config, controls, folder, metrics, log) as url,
    ):
        if url is not None:
            console.print(f"[dim]page, control and metrics at {url}[/]")
        trace = _trace(folder, log, handlers) if with_trace else None
        if any(finding.failure for finding in check_data(config)):
            start_runtime().close()  # the pipeline would stop at the first; this says at once all that is in the way
        pipeline = Pipeline(config, folder, start_runtime=start_runtime, console=console, again=again,
                            controls=controls, metrics=metrics, mirror=mirror, trace=trace)  # fmt: skip
        if pipeline.run() or not (folder / "report.html").is_file():
            write_summary(folder)
            _write_report(folder)
    print_summary(folder, console)
    mirror.show_where(console)


def _served(
    config: RunConfig, controls: RunControls, folder: Path, metrics: RunMetrics, log: EventLog
) -> AbstractContextManager[str | None]:
    """The control channel; its URL, if it has one."""
    return serve_control(
        config.control,
        controls,
        folder,
        registry=metrics.registry,
        note=functools.partial(log.write, "control"),
        count=metrics.control_request,
    )


def _trace(folder: Path, log: EventLog, stack: ExitStack) -> RunTrace:
    """Of the whole run, closed with the stack."""
    file = TraceFile(folder / TRACE, told=functools.partial(log.write, "trace"))
    return RunTrace(stack.enter_context(file))


@contextmanager
def report_if_stopped(folder: Path, console: Console) -> Iterator[None]:
    """Where the block ends with RunStopped, by a guard rail too, write the report of what there is so far.

    How the run ended stays what it was, whether the report can be written or not. Around RecordEnd, for the report
    tells how the run ended.
    """
    try:
        yield
    except RunStopped:
        try:
            console.print(f"[dim]what there is so far: {escape(str(_write_report(folder)))}[/]", soft_wrap=True)
        except (MiniChatGPTError, OSError, ValueError, LookupError, ArithmeticError, TemplateError) as error:
            what = escape(f"{type(error).__name__}: {error}")
            console.print(f"[yellow]Caution:[/] report.html could not be written: {what}", soft_wrap=True)
        raise


def cautions(config: RunConfig) -> list[str]:
    """Settings that are legal and rarely meant."""
    found = []
    learned = "float32" if config.learner.dtype == "auto" else config.learner.dtype
    if learned != "float32":
        found.append(
            f"learner.dtype={config.learner.dtype} keeps no float32 copy of the weights: small updates round to zero"
        )
    if config.rollout.dtype not in ("auto", learned):
        found.append(
            f"rollout.dtype={config.rollout.dtype} and learner.dtype={learned} differ: workers sample "
            "from another distribution than the learner assumes; watch logprob_gap_max"
        )
    return found


def show(folder: Path, console: Console) -> None:
    """Write summary and report of a finished run anew, and print the summary."""
    write_summary(folder)
    _write_report(folder)
    print_summary(folder, console)


def _write_report(folder: Path) -> Path:
    """Imports here what draws figures: a tenth of the driver's imports, of which a run's start needs none."""
    from deploy.report.report import write_report

    return write_report(folder)


def _warn(console: Console, caution: str) -> None:
    console.print(f"[yellow]Caution:[/] {escape(caution)}", highlight=False, soft_wrap=True)


def _quiet() -> None:
    """Leave the terminal to our own progress: libraries' bars and remarks go."""
    import datasets
    import transformers

    datasets.disable_progress_bars()
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.filterwarnings("ignore", category=FutureWarning)
