"""The command `bench`. Imports what is heavy after parsing."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.bench.names import what_there_is
from deploy.exit_codes import FAILED

app = typer.Typer(rich_markup_mode="rich")

EXAMPLES = """
[bold]Examples[/]

  minichatgpt bench engine --model tiny             tokens per second beside Hugging Face's generate

  minichatgpt bench scale --workers 256             whether the control plane keeps so many workers busy

  minichatgpt bench all --json > bench.json         all but peers and curves, in a quarter of an hour on two cores

  minichatgpt bench peers --model tiny --steps 5    a step of PPO beside TRL's, each in an environment of its own: 3
  minutes; of --model smollm2-135m --steps 2 some twenty; and some minutes more the first time, to install them

  minichatgpt bench curves --out curves             how fast ours and TRL's PPO learn the same, as a picture: 5 minutes

Exit code 1: a benchmark has failed; the others have gone on.
"""


@app.command(epilog=EXAMPLES)
def bench(
    what: Annotated[list[str], typer.Argument(metavar="WHAT...", help=f"One or more of\n\n{what_there_is()}\n\n")],
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", help="Shape, folder or hub name; several may be given: by default tiny and smollm2-135m."
        ),
    ] = None,
    workers: Annotated[
        list[int] | None,
        typer.Option(
            "--workers",
            min=1,
            help="Simulated workers of `scale`; several may be given: by default 8, 64, 256 and 1024.",
        ),
    ] = None,
    rounds: Annotated[
        int,
        typer.Option(
            "--rounds", "--steps", min=1, help="Measured rounds of interleaved work; fewer where a round takes long."
        ),
    ] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document on stdout.")] = False,
    cache: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            help="Where `peers` and `curves` keep their environments, some 4 GB; by default in Hugging Face's cache.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(metavar="FOLDER", help="Where `curves` leaves peers.csv and peers.png.")
    ] = Path(),
) -> None:
    """Measure parts of the system, in turns with what else users would take, as shares of what the machine can do."""
    from deploy.on_ray.environment import protect_local_cluster

    protect_local_cluster()  # before any of the benchmarks imports Ray
    from deploy.bench import figures, suite
    from deploy.bench.options import Options

    asked = Options()
    options = Options(
        models=tuple(model or asked.models),
        workers=tuple(workers or asked.workers),
        rounds=rounds,
        cache=cache,
        out=out,
    )
    console = Console(stderr=as_json)
    done = suite.run(what, options, console)
    if as_json:
        typer.echo(figures.as_json(done.figures, done.roof.describe(), done.errors))
    else:
        figures.show(done.figures, console)
    for name, words in done.errors.items():
        console.print(f"[bold red]bench {name} failed[/]", highlight=False)
        console.print(words, markup=False, highlight=False, soft_wrap=True)
    if done.errors:
        raise typer.Exit(FAILED)
