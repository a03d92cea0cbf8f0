"""The command `trace`. Imports what is heavy after parsing."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.control.cli import RunsOption

app = typer.Typer(rich_markup_mode="rich")

EXAMPLES = """
[bold]Examples[/]

  minichatgpt run tiny --trace --again ppo && minichatgpt trace tiny     a picture of runs/tiny/trace.json

  minichatgpt trace one other --png both.png --seconds 5        two runs, one above the other
"""


@app.command(epilog=EXAMPLES)
def trace(
    names: Annotated[list[str], typer.Argument(metavar="RUN...", help="Names of runs, or their folders.")],
    png: Annotated[Path, typer.Option(help="The picture.")] = Path("trace.png"),
    start: Annotated[float, typer.Option(help="Seconds after the first update began.")] = 0.0,
    seconds: Annotated[float, typer.Option(min=0.001, help="Length of time that is shown.")] = 10.0,
    runs: RunsOption = Path("runs"),
) -> None:
    """Draw who did what when, from the trace.json that `run --trace` wrote; Perfetto opens that file too."""
    from deploy.run_folder.address import find_folder
    from deploy.trace.picture import draw_traces
    from deploy.trace.trace_file import TRACE

    folders = [find_folder(name, runs) for name in names]
    draw_traces([(f.name, f / TRACE) for f in folders], png, start_s=start, seconds=seconds)
    Console().print(f"{png}", soft_wrap=True)
