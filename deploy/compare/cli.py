"""The command `minichatgpt compare`. Imports what is heavy after parsing."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from deploy.control.cli import RunsOption

app = typer.Typer(rich_markup_mode="rich")

EXAMPLES = """
[bold]Examples[/]

  minichatgpt compare demo other                           table, and runs/compare.html

  minichatgpt compare demo other /elsewhere/third --page /tmp/three.html
"""


@app.command(epilog=EXAMPLES)
def compare(
    run_names: Annotated[list[str], typer.Argument(metavar="RUN RUN …", help="Names of runs, or their folders.")],
    page: Annotated[
        Path | None, typer.Option("--page", metavar="FILE", help="Where the page goes; else compare.html in --runs.")
    ] = None,
    runs: RunsOption = Path("runs"),
) -> None:
    """Lay runs side by side: settings that differ, numbers, win rates, curves, and the same held-out prompts."""
    from deploy.run_folder.address import find_folder

    folders = [find_folder(name, runs) for name in run_names]
    from deploy.compare.compare import compare_runs
    from deploy.compare.page import write_page
    from deploy.compare.view import print_comparison

    console = Console()
    comparison = compare_runs(folders)
    print_comparison(comparison, console)
    target = page if page is not None else runs / "compare.html"
    write_page(comparison, target)
    console.print(f"Page  [bold cyan]{target}[/]", soft_wrap=True)
