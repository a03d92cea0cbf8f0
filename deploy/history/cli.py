"""The commands `minichatgpt samples` and `minichatgpt logs`: what a run has written down, while it runs or later.
Imports what is heavy after parsing.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer
from rich.console import Console
from rich.text import Text

from deploy.control.cli import RunsOption, TokenFileOption, TokenOption, UrlOption
from deploy.jobs.options import DashboardOption, InsecureOption
from deploy.on_ray.openness import be_explicit

if TYPE_CHECKING:
    from deploy.history.source import Source
    from deploy.run_folder.history import EventRow

app = typer.Typer(rich_markup_mode="rich")

POLL_S: Final = 0.5
"""Time between two looks."""
MOST_EVENTS: Final = 1000
"""Shown of those that came between two looks."""

RunArgument = Annotated[
    str | None,
    typer.Argument(
        metavar="[RUN]",
        show_default=False,
        help="Name of a run, or its folder, whether it runs or not. Left out: the one at --url, or at MINICHATGPT_URL.",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object per line, for programs.")]

SAMPLES_EXAMPLES = """
[bold]Examples[/]

  minichatgpt samples demo                            the newest ones, best and worst of each update

  minichatgpt samples demo --best --limit 5

  minichatgpt samples demo --update 12 --worst

  minichatgpt samples demo --heldout                  before and after PPO

  minichatgpt samples demo --grep refund --limit 100

  minichatgpt samples demo --best --json | jq -r .response

  minichatgpt samples --url http://10.0.0.7:9464 --token-file read.token
"""
LOGS_EXAMPLES = """
[bold]Examples[/]

  minichatgpt logs demo                               the last events: members lost, resizes, settings, checkpoints

  minichatgpt logs demo --follow                      and those that come, until the run is over

  minichatgpt logs --url http://10.0.0.7:9464 --follow

  minichatgpt logs demo --address http://10.0.0.7:8265 --follow      what a launched job prints

  minichatgpt logs demo --limit 1000 --json | jq -r 'select(.event == "restart") | .text'

[bold]Logs of processes[/]

  Rollout workers, reward replicas and learner write to the terminal of the run, and with Ray also to its log folder on
  their node, /tmp/ray/session_latest/logs. Stacks of those that hung are in logs/ of the run folder.
"""


@app.command(epilog=SAMPLES_EXAMPLES)
def samples(
    run: RunArgument = None,
    update: Annotated[int | None, typer.Option("--update", metavar="N", min=1, help="Only of this update.")] = None,
    best: Annotated[bool, typer.Option("--best", help="Only the best of each update.")] = False,
    worst: Annotated[bool, typer.Option("--worst", help="Only the worst of each update.")] = False,
    heldout: Annotated[bool, typer.Option("--heldout", help="Only answers to held-out prompts, after PPO.")] = False,
    grep: Annotated[
        str | None, typer.Option("--grep", metavar="TEXT", help="Only with TEXT in the response, whatever its case.")
    ] = None,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, max=1000, help="At most so many.")] = 20,
    as_json: JsonOption = False,
    url: UrlOption = None,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Show texts that the policy wrote: newest update first, the best of an update before the worst."""
    from deploy.history.source import open_source
    from deploy.history.view import print_samples

    kind = _kind(best, worst, heldout)
    with open_source(run, runs, url=url, token=token, token_file=token_file) as source:
        found = source.written.samples(update=update, kind=kind, contains=grep, limit=limit)
    if as_json:
        for row in found.samples:
            typer.echo(row.model_dump_json())
    else:
        print_samples(found.samples, Console(), sought=grep)
    if not found.samples:
        Console(stderr=True).print(Text(f"no sample of {source.name} fits", "yellow"))
    if not found.is_complete:
        Console(stderr=True).print(Text("the file is long: older samples were not looked at", "yellow"))


def _kind(best: bool, worst: bool, heldout: bool) -> Literal["best", "worst", "heldout"] | None:
    from common.errors import ConfigError

    if best + worst + heldout > 1:
        raise ConfigError("--best, --worst and --heldout exclude each other; give one, or none for all")
    return "best" if best else "worst" if worst else "heldout" if heldout else None


@app.command(epilog=LOGS_EXAMPLES)
def logs(
    run: RunArgument = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on as events come, until the run is over.")
    ] = False,
    limit: Annotated[int, typer.Option("--limit", metavar="N", min=1, max=1000, help="Begin with the last N.")] = 50,
    as_json: JsonOption = False,
    url: UrlOption = None,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    runs: RunsOption = Path("runs"),
    address: DashboardOption = None,
    insecure: InsecureOption = False,
) -> None:
    """Show the events of a run: members lost and replaced, resizes, changed settings, checkpoints that failed."""
    if address is not None:
        be_explicit()
        from deploy.jobs.verbs import show_logs

        raise typer.Exit(show_logs(run, address, url=url, follow_on=follow, limit=limit, insecure=insecure))
    from deploy.history.source import open_source
    from deploy.history.view import print_events

    console, beside = Console(), Console(stderr=True)

    def show(row: "EventRow") -> None:
        if as_json:
            typer.echo(row.model_dump_json())
            sys.stdout.flush()
        else:
            print_events([row], console)

    with open_source(run, runs, url=url, token=token, token_file=token_file) as source:
        events = source.written.events(limit=limit).events
        for row in events:
            show(row)
        if follow:
            follow_events(source, show, after=events[-1].number if events else -1)
            beside.print(Text(source.how_it_ended(), "dim"), soft_wrap=True)
    if not events and not follow:
        beside.print(Text(f"{source.name} has no events yet", "yellow"))
    if (stacks := source.stacks()) and not as_json:
        console.print(Text(f"Stacks of processes that hung: {', '.join(map(str, stacks))}", "dim"), soft_wrap=True)


def follow_events(source: "Source", show: Callable[["EventRow"], None], *, after: int) -> None:
    """Show each event whose number is above `after` as it comes; returns once the run is over and all are shown."""
    from common.errors import ControlError, RunEndingError

    while True:
        ended = source.is_over()  # first: what was written before the end is shown
        try:
            rows = source.written.events(after=after, limit=MOST_EVENTS).events
        except RunEndingError:
            rows = ()  # it says no more, and is gone soon
        except ControlError:
            if source.is_over():  # who was asked has gone
                return
            raise
        for row in rows:
            show(row)
            after = row.number
        if ended:
            return
        time.sleep(POLL_S)
