"""The commands that steer a live run: status, scale, checkpoint, stop. Imports what is heavy after parsing."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.markup import escape

from deploy.exit_codes import FINISHED, GUARDED, INTERRUPTED, STOPPED, TERMINATED

if TYPE_CHECKING:
    from deploy.control_client import RunClient, Show
    from deploy.run_address import RunEnd
    from deploy.run_status import RunStatus

app = typer.Typer(rich_markup_mode="rich")

RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Name of a run that is running, or its folder.")]
RunsOption = Annotated[Path, typer.Option("--runs", metavar="FOLDER", help="Where run folders are.")]

ORDERLY: Final = frozenset({FINISHED, STOPPED, GUARDED, INTERRUPTED, TERMINATED})
"""Exit codes of a run that ended by itself, or because somebody or a guard rail asked."""

STATUS_EXAMPLES = """
[bold]Examples[/]

  minichatgpt status demo

  minichatgpt status demo --json | jq .pools.rollout.active
"""
SCALE_EXAMPLES = """
[bold]Examples[/]

  minichatgpt scale demo --rollout-workers 4                     returns at once; the workers come as they can

  minichatgpt scale demo --rollout-workers 1 --wait              waits until those that go have finished their work

  minichatgpt scale demo --rollout-workers 8 --reward-replicas 2
"""
CHECKPOINT_EXAMPLES = """
[bold]Examples[/]

  minichatgpt checkpoint demo                    as soon as the update that runs is done

  minichatgpt checkpoint demo --timeout 60
"""
STOP_EXAMPLES = """
[bold]Examples[/]

  minichatgpt stop demo                          waits until it has ended, with a checkpoint

  minichatgpt stop demo --no-wait --reason "the machine goes down at six"
"""


@app.command(epilog=STATUS_EXAMPLES)
def status(
    run: RunArgument,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    runs: RunsOption = Path("runs"),
) -> None:
    """Show what a live run is doing: progress, phase, samples, workers, replicas, newest checkpoint."""
    from deploy.control_client import find_run
    from deploy.control_view import print_status

    with find_run(run, runs) as client:
        now = client.status()
    if as_json:
        typer.echo(now.model_dump_json(indent=1))
    else:
        print_status(now, Console())


@app.command(epilog=SCALE_EXAMPLES)
def scale(
    run: RunArgument,
    rollout_workers: Annotated[
        int | None, typer.Option("--rollout-workers", metavar="N", min=1, help="Rollout workers that there shall be.")
    ] = None,
    reward_replicas: Annotated[
        int | None, typer.Option("--reward-replicas", metavar="M", min=1, help="Reward replicas that there shall be.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until they are there, and those that go are gone.")
    ] = False,
    timeout_s: Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="Longest wait.")] = 300.0,
    runs: RunsOption = Path("runs"),
) -> None:
    """Change how many rollout workers or reward replicas a live run has, while it trains."""
    from common.errors import ConfigError
    from deploy.control_client import OPTIONS, find_run
    from deploy.run_status import MAX_MEMBERS, ScaleRequest

    asked = {"rollout": rollout_workers, "reward": reward_replicas}
    targets = {role: number for role, number in asked.items() if number is not None}
    if not targets:
        raise ConfigError("nothing to change; give --rollout-workers N, --reward-replicas M or both")
    if max(targets.values()) > MAX_MEMBERS:
        raise ConfigError(f"{max(targets.values())} processes of a role are asked for; at most {MAX_MEMBERS} are legal")
    console = Console()
    with find_run(run, runs) as client:
        before = client.status().pools
        after = client.scale(ScaleRequest(rollout_workers=rollout_workers, reward_replicas=reward_replicas)).pools
        for role in targets:
            was = before[role].target if role in before else "–"
            active = f"[dim], {after[role].active} active now[/]"
            console.print(f"{OPTIONS[role]} [bold]{was} → {after[role].target}[/]{active}", highlight=False)
        if wait:
            with _progress(console) as show:
                client.await_size(targets, timeout_s, show)
            console.print("[green]✓[/] as asked for")


@app.command(epilog=CHECKPOINT_EXAMPLES)
def checkpoint(
    run: RunArgument,
    timeout_s: Annotated[
        float, typer.Option("--timeout", metavar="SECONDS", min=0.1, max=3600, help="Longest wait.")
    ] = 900.0,
    runs: RunsOption = Path("runs"),
) -> None:
    """Have a live run write a checkpoint, and wait until it is written and verified."""
    from deploy.control_client import find_run

    console = Console()
    with find_run(run, runs) as client, console.status("waiting for the checkpoint"):
        info = client.checkpoint(timeout_s)
    console.print(f"[green]✓[/] checkpoint of update {info.step}, written and verified:", highlight=False)
    console.print(info.url, markup=False, highlight=False, soft_wrap=True)


@app.command(epilog=STOP_EXAMPLES)
def stop(
    run: RunArgument,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; goes to the log.")] = "minichatgpt stop",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the process has gone.")] = True,
    timeout_s: Annotated[float, typer.Option("--timeout", metavar="SECONDS", help="Longest wait.")] = 300.0,
    runs: RunsOption = Path("runs"),
) -> None:
    """End a live run: it finishes or abandons its update, writes a checkpoint, and exits with code 3."""
    from pydantic import ValidationError

    from common.errors import ConfigError
    from deploy.control_client import find_run
    from deploy.run_status import StopRequest

    try:
        wanted = StopRequest(reason=reason)
    except ValidationError as error:
        raise ConfigError(f"--reason {reason!r}: {error.errors()[0]['msg']}") from error
    console = Console()
    with find_run(run, runs) as client:
        client.stop(wanted)
        if not wait:
            console.print(f"{client.folder.name} was asked to end; `minichatgpt status` shows whether it has")
            return
        _await_end(client, timeout_s, console)


@contextmanager
def _progress(console: Console) -> "Iterator[Show]":
    """A line that moves while somebody waits; in a file it leaves nothing."""
    from deploy.control_view import progress_line

    with console.status("waiting") as line:
        yield lambda now: line.update(escape(progress_line(now)))


def _await_end(client: "RunClient", timeout_s: float, console: Console) -> None:
    """Wait until the process has gone, and say how it ended; raises ControlError if it failed or was killed."""
    last: list[RunStatus] = []
    with _progress(console) as show:

        def look(now: "RunStatus") -> None:
            last[:] = [now]
            show(now)

        end = client.await_end(timeout_s, look)
    show_end(client, end, console)
    if last and last[0].step is not None:
        console.print(f"last seen at update {last[0].step} of {last[0].updates}", highlight=False)


def show_end(client: "RunClient", end: "RunEnd | None", console: Console) -> None:
    """Say how a run ended; raises ControlError if it failed or was killed."""
    from common.errors import ControlError

    name = client.folder.name
    if end is None:
        raise ControlError(f"{name} has ended and left no word on how: process {client.pid} was killed")
    if end.exit_code not in ORDERLY:
        raise ControlError(f"{name} has ended, but by an error (exit code {end.exit_code}): {end.reason}")
    console.print(f"[green]✓[/] {name} has ended (exit code {end.exit_code}):", highlight=False)
    console.print(end.reason, markup=False, highlight=False, soft_wrap=True)
