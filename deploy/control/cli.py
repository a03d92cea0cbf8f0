"""The commands that look at a live run, resize it and end it: status, workers, scale, stop. And the options that all
commands on a live run share; `deploy/control/steer_cli.py` has the others. Imports what is heavy after parsing.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.markup import escape

from common.errors import ConfigError
from deploy.exit_codes import FINISHED, GUARDED, INTERRUPTED, STOPPED, TERMINATED
from deploy.jobs.options import DashboardOption, InsecureOption
from deploy.on_ray.openness import be_explicit
from deploy.run_folder.at_url import is_url, on_disks_only, spelt

if TYPE_CHECKING:
    from deploy.control.client import RunClient
    from deploy.control.run_status import RunStatus
    from deploy.control.waits import Show
    from deploy.run_folder.address import RunEnd

app = typer.Typer(rich_markup_mode="rich")


def refuse_url(runs: Path) -> Path:
    """The same folder; raises ConfigError for a URL, which only those who train work on."""
    if is_url(str(runs)):
        url = spelt(str(runs))
        raise ConfigError(f"--runs {url}: {on_disks_only(f'{url}/NAME')}")
    return runs


RunArgument = Annotated[str, typer.Argument(metavar="RUN", help="Name of a run that is running, or its folder.")]
TargetArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN]",
        show_default=False,
        help="Name of a run that is running, or its folder. Left out: the one at --url, or at MINICHATGPT_URL.",
    ),
]
RunsOption = Annotated[
    Path, typer.Option("--runs", metavar="FOLDER", help="Where run folders are.", callback=refuse_url)
]
UrlOption = Annotated[
    str | None,
    typer.Option("--url", metavar="URL", show_default=False, help="Control channel of a run anywhere, instead of RUN."),
]
TokenOption = Annotated[
    str | None,
    typer.Option(
        "--token",
        metavar="TOKEN",
        show_default=False,
        help="Token of that run. Who lists the processes of this machine sees it: better --token-file, or the "
        "environment variable MINICHATGPT_TOKEN.",
    ),
]
TokenFileOption = Annotated[
    Path | None,
    typer.Option("--token-file", metavar="FILE", show_default=False, help="File that holds the token of that run."),
]
TimeoutOption = Annotated[float, typer.Option("--timeout", metavar="SECONDS", min=0, help="Longest wait.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")]

ORDERLY: Final = frozenset({FINISHED, STOPPED, GUARDED, INTERRUPTED, TERMINATED})
"""Exit codes of a run that ended by itself, or because somebody or a guard rail asked."""

STATUS_EXAMPLES = """
[bold]Examples[/]

  minichatgpt status demo

  minichatgpt status demo --json | jq .pools.rollout.active

  minichatgpt status --url http://10.0.0.7:9464 --token-file read.token

  minichatgpt status demo --address http://10.0.0.7:8265         of a run that was launched as a job: state, times, node
"""
WORKERS_EXAMPLES = """
[bold]Examples[/]

  minichatgpt workers demo                                       who they are, and how busy

  minichatgpt workers demo --json | jq -r '.pools.rollout.members\\[] | .slot + " " + .state'
"""
SCALE_EXAMPLES = """
[bold]Examples[/]

  minichatgpt scale demo --rollout-workers 4                     returns at once; the workers come as they can

  minichatgpt scale demo --rollout-workers 1 --wait              waits until those that go have finished their work

  minichatgpt scale demo --rollout-workers 8 --reward-replicas 2

  minichatgpt scale --url http://10.0.0.7:9464 --token-file control.token --rollout-workers 8
"""
STOP_EXAMPLES = """
[bold]Examples[/]

  minichatgpt stop demo                          waits until it has ended, with a checkpoint

  minichatgpt stop demo --no-wait --reason "the machine goes down at six"

  minichatgpt stop demo --address http://10.0.0.7:8265     a job: SIGTERM, after which it has the time for a checkpoint
"""


@app.command(epilog=STATUS_EXAMPLES)
def status(
    run: TargetArgument = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    runs: RunsOption = Path("runs"),
    address: DashboardOption = None,
    insecure: InsecureOption = False,
) -> None:
    """Show what a live run is doing: progress, phase, settings, samples, workers, replicas, newest checkpoint."""
    if address is not None:
        be_explicit()
        from deploy.jobs.verbs import show_status

        show_status(run, address, url=url, as_json=as_json, insecure=insecure)
        return
    from deploy.control.target import open_run
    from deploy.control.view import print_status

    with open_run(run, runs, url=url, token=token, token_file=token_file) as client:
        now = client.status()
    if as_json:
        typer.echo(now.model_dump_json(indent=1))
    else:
        print_status(now, Console())


@app.command(epilog=WORKERS_EXAMPLES)
def workers(
    run: TargetArgument = None,
    as_json: JsonOption = False,
    url: UrlOption = None,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Show the rollout workers and reward replicas of a live run: state, weights and their age, load, memory."""
    from deploy.control.target import open_run
    from deploy.control.view import print_workers

    with open_run(run, runs, url=url, token=token, token_file=token_file) as client:
        now = client.workers()
    if as_json:
        typer.echo(now.model_dump_json(indent=1))
    else:
        print_workers(now, Console())


@app.command(epilog=SCALE_EXAMPLES)
def scale(
    run: TargetArgument = None,
    rollout_workers: Annotated[
        int | None, typer.Option("--rollout-workers", metavar="N", min=1, help="Rollout workers that there shall be.")
    ] = None,
    reward_replicas: Annotated[
        int | None, typer.Option("--reward-replicas", metavar="M", min=1, help="Reward replicas that there shall be.")
    ] = None,
    wait: Annotated[
        bool, typer.Option("--wait", help="Wait until they are there, and those that go are gone.")
    ] = False,
    timeout_s: TimeoutOption = 300.0,
    url: UrlOption = None,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Change how many rollout workers or reward replicas a live run has, while it trains."""
    from common.errors import ConfigError
    from deploy.control.run_status import MAX_MEMBERS, ScaleRequest
    from deploy.control.target import open_run
    from deploy.control.waits import OPTIONS, await_size

    asked = {"rollout": rollout_workers, "reward": reward_replicas}
    targets = {role: number for role, number in asked.items() if number is not None}
    if not targets:
        raise ConfigError("nothing to change; give --rollout-workers N, --reward-replicas M or both")
    if max(targets.values()) > MAX_MEMBERS:
        raise ConfigError(f"{max(targets.values())} processes of a role are asked for; at most {MAX_MEMBERS} are legal")
    console = Console()
    with open_run(run, runs, url=url, token=token, token_file=token_file) as client:
        before = client.status().pools
        after = client.scale(ScaleRequest(rollout_workers=rollout_workers, reward_replicas=reward_replicas)).pools
        for role in targets:
            was = before[role].target if role in before else "–"
            active = f"[dim], {after[role].active} active now[/]"
            console.print(f"{OPTIONS[role]} [bold]{was} → {after[role].target}[/]{active}", highlight=False)
        if wait:
            with progress(console) as show:
                await_size(client, targets, timeout_s, show)
            console.print("[green]✓[/] as asked for")


@app.command(epilog=STOP_EXAMPLES)
def stop(
    run: TargetArgument = None,
    reason: Annotated[str, typer.Option("--reason", metavar="TEXT", help="Why; goes to the log.")] = "minichatgpt stop",
    wait: Annotated[bool, typer.Option("--wait/--no-wait", help="Wait until the process has gone.")] = True,
    timeout_s: TimeoutOption = 300.0,
    url: UrlOption = None,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    runs: RunsOption = Path("runs"),
    address: DashboardOption = None,
    insecure: InsecureOption = False,
) -> None:
    """End a live run: it finishes or abandons its update, writes a checkpoint, and exits with code 3."""
    if address is not None:
        be_explicit()
        from deploy.jobs.verbs import stop_job

        stop_job(run, address, url=url, wait=wait, timeout_s=timeout_s, insecure=insecure)
        return
    from pydantic import ValidationError

    from common.errors import ConfigError
    from deploy.control.run_status import StopRequest
    from deploy.control.target import open_run

    try:
        wanted = StopRequest(reason=reason)
    except ValidationError as error:
        raise ConfigError(f"--reason {reason!r}: {error.errors()[0]['msg']}") from error
    console = Console()
    with open_run(run, runs, url=url, token=token, token_file=token_file) as client:
        client.stop(wanted)
        if not wait:
            console.print(f"{client.name} was asked to end; `minichatgpt status` shows whether it has")
            return
        _await_end(client, timeout_s, console)


@contextmanager
def progress(console: Console) -> "Iterator[Show]":
    """A line that moves while somebody waits; in a file it leaves nothing."""
    from deploy.control.view import progress_line

    with console.status("waiting") as line:
        yield lambda now: line.update(escape(progress_line(now)))


def _await_end(client: "RunClient", timeout_s: float, console: Console) -> None:
    """Wait until the process has gone, and say how it ended; raises ControlError if it failed or was killed."""
    from deploy.control.waits import await_end

    last: list[RunStatus] = []
    with progress(console) as show:

        def look(now: "RunStatus") -> None:
            last[:] = [now]
            show(now)

        end = await_end(client, timeout_s, look)
    show_end(client, end, console)
    if last and last[0].step is not None:
        console.print(f"last seen at update {last[0].step} of {last[0].updates}", highlight=False)


def show_end(client: "RunClient", end: "RunEnd | None", console: Console) -> None:
    """Say how a run ended; raises ControlError if it failed or was killed."""
    from common.errors import ControlError

    name = client.name
    if end is None and client.folder is None:
        console.print(f"[green]✓[/] {escape(name)} has ended; its folder says how", highlight=False)
        return
    if end is None:
        raise ControlError(f"{name} has ended and left no word on how: process {client.pid} was killed")
    if end.exit_code not in ORDERLY:
        raise ControlError(f"{name} has ended, but by an error (exit code {end.exit_code}): {end.reason}")
    console.print(f"[green]✓[/] {name} has ended (exit code {end.exit_code}):", highlight=False)
    console.print(end.reason, markup=False, highlight=False, soft_wrap=True)
