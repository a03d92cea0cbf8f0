"""The command `minichatgpt replay`. Imports what is heavy after parsing."""

import os
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.control.cli import RunsOption
from deploy.exit_codes import DIFFERENT
from deploy.on_ray.environment import THREADS

app = typer.Typer(rich_markup_mode="rich")

EXAMPLES = """
[bold]Examples[/]

  minichatgpt replay demo                        which updates can be replayed, and from where

  minichatgpt replay demo --update 12            from the newest checkpoint before it

  minichatgpt replay demo --update 40 --from 0   the whole run, from the policy before PPO

  minichatgpt replay demo --update 12 --json | jq .largest_metric_difference

[bold]Exit codes[/]

  0    nothing differs, to the last bit

  1    something differs; or it could not be replayed, and the message on stderr says why

  2    the command line is not understood
"""


@app.command(epilog=EXAMPLES)
def replay(
    run_name: Annotated[str, typer.Argument(metavar="RUN", help="Name of a run, or its folder.")],
    update: Annotated[
        int | None, typer.Option("--update", metavar="N", min=1, help="Recompute this one; else list which can be.")
    ] = None,
    from_step: Annotated[
        int | None,
        typer.Option("--from", metavar="STEP", min=0, help="Begin at a checkpoint up to this; 0: before PPO."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for programs.")] = False,
    runs: RunsOption = Path("runs"),
) -> None:
    """Recompute an update from a kept checkpoint and the recorded trajectories, and compare: metrics and weights.

    Reads the run folder only, also while the run goes on; recomputes as it was done: threads, precision, settings.
    """
    for name, value in THREADS.items():
        os.environ.setdefault(name, value)
    from deploy.run_folder.address import find_folder

    folder = find_folder(run_name, runs)
    import json

    import transformers

    from deploy.progress import stage_bar
    from deploy.replay.replay import replay as recompute
    from deploy.replay.view import print_plan, print_replay
    from deploy.run_folder.recorded_run import open_recorded

    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    run, console = open_recorded(folder, from_step=from_step), Console()
    if update is None:
        if as_json:
            typer.echo(json.dumps(run.plan.as_dict(), indent=1))
        else:
            print_plan(folder.resolve().name, run.plan, console)
        return
    with stage_bar(Console(stderr=True), "replay") as show:
        found = recompute(run, update, show)
    if as_json:
        typer.echo(found.model_dump_json(indent=1))
    else:
        print_replay(found, console)
    if not found.is_same:
        raise typer.Exit(DIFFERENT)
