"""The command `minichatgpt launch`. Imports what is heavy after parsing."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.config_cli import ConfigArgument, SetOption, load
from deploy.jobs.options import InsecureOption
from deploy.on_ray.openness import be_explicit

app = typer.Typer(rich_markup_mode="rich")

LAUNCH_EXAMPLES = """
[bold]Examples[/]

  minichatgpt launch demo --address http://10.0.0.7:8265 --runs /shared/runs

  minichatgpt launch my.toml --address http://10.0.0.7:8265 --runs s3://bucket/runs --set rollout.workers=16 --detach

  minichatgpt launch my.toml --address http://10.0.0.7:8265 --runs /shared/runs --wheel dist/minichatgpt-0.1.0.whl

[bold]Afterwards[/]

  minichatgpt status demo --address http://10.0.0.7:8265         also logs, logs --follow, stop

  The same `launch` once more goes on where the run ended, whether it failed or was stopped.

[bold]Exit codes[/]

  Those of `minichatgpt run`, see there: 0 all stages are done, 1 it failed, 3 it was stopped, 4 by a guard rail.
  130 after Ctrl-C, which ends the showing of the log and not the run.

[bold]Secrets[/]

  Set tokens that the configuration names in the environment of `ray start`; nothing is forwarded from here: the
  environment of a job can be read in Ray's dashboard.
"""


@app.command(epilog=LAUNCH_EXAMPLES)
def launch(
    config: ConfigArgument,
    address: Annotated[
        str, typer.Option("--address", metavar="URL", help="Dashboard of the cluster, as http://HEAD:8265.")
    ],
    runs: Annotated[
        str, typer.Option("--runs", metavar="PLACE", help="Where run folders are, as all nodes see it: path or URL.")
    ],
    changes: SetOption = None,
    wheel: Annotated[
        Path | None,
        typer.Option("--wheel", metavar="FILE", help="This project as a wheel, instead of what is on the nodes."),
    ] = None,
    again: Annotated[
        list[str] | None, typer.Option("--again", metavar="STAGE", help="Run this stage even if it is done.")
    ] = None,
    detach: Annotated[bool, typer.Option("--detach", help="Return at once; do not show the log.")] = False,
    insecure: InsecureOption = False,
) -> None:
    """Run CONFIG as a job of a Ray cluster, from anywhere that reaches its dashboard, and show its log."""
    settings = load(config, changes)
    be_explicit()
    from deploy.jobs.verbs import launch as launch_job

    code = launch_job(
        settings,
        address,
        runs,
        wheel=wheel,
        again=again or (),
        detach=detach,
        insecure=insecure,
        console=Console(stderr=True),
    )
    raise typer.Exit(code)
