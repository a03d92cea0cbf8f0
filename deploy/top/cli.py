"""The command `top`. Imports what is heavy after parsing."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.control.cli import RunsOption, TargetArgument, TokenFileOption, TokenOption, UrlOption

app = typer.Typer(rich_markup_mode="rich")

EXAMPLES = """
[bold]Examples[/]

  minichatgpt top demo

  minichatgpt top demo --interval 5

  minichatgpt top --url http://10.0.0.7:9464 --token-file control.token

  minichatgpt top demo --once | less -R              one frame, for pipes and logs

[bold]Keys[/]

  q quit · p pause or resume · + and − one rollout worker more or less
"""


@app.command(epilog=EXAMPLES)
def top(
    run: TargetArgument = None,
    once: Annotated[bool, typer.Option("--once", help="Print one frame and leave.")] = False,
    interval_s: Annotated[
        float, typer.Option("--interval", metavar="SECONDS", min=0.1, max=3600, help="Time between two looks.")
    ] = 1.0,
    url: UrlOption = None,
    token: TokenOption = None,
    token_file: TokenFileOption = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Watch a live run in the terminal: curves, who waits for whom, workers, samples, events."""
    from deploy.control.cli import show_end
    from deploy.control.target import open_run
    from deploy.run_folder.address import read_end
    from deploy.top.top import print_once, watch

    console = Console()
    with open_run(run, runs, url=url, token=token, token_file=token_file) as client:
        if once:
            print_once(client, console)
            return
        try:
            watch(client, console, interval_s=interval_s)
        except KeyboardInterrupt:
            return
        if client.is_over():
            show_end(client, None if client.folder is None else read_end(client.folder), console)
