"""The command `minichatgpt preflight`: what `run` checks before it starts, shown line by line."""

from pathlib import Path

import typer
from rich.console import Console
from rich.markup import escape

from common.config import RunConfig
from deploy.checked_runtime import examined_runtime
from deploy.preflight.node_table import node_table


def show_preflight(
    config: RunConfig, folder: Path, *, local: bool, address: str | None, console: Console, insecure: bool = False
) -> None:
    """Print each check with what was measured or what fails; raises typer.Exit(1) if the run could not start."""
    runtime, found = examined_runtime(config, folder, local=local, address=address, insecure=insecure)
    if runtime is not None:
        nodes = runtime.facts().nodes if address is not None else None
        runtime.close()
        if nodes is not None:
            console.print(node_table(nodes))
    for finding in found:
        if finding.failure:
            line = f"[red]✗[/] {escape(finding.failure)}"
        elif finding.caution:
            line = f"[yellow]![/] {escape(finding.caution)}"
        else:
            line = f"[green]✓[/] {escape(finding.check)} [dim]{escape(finding.measured)}[/]"
        console.print(line, highlight=False, soft_wrap=True)
    failures = sum(bool(finding.failure) for finding in found)
    if failures:
        console.print(f"[red]{config.name} cannot start, for {failures} reason{'s' * (failures > 1)}.[/]")
        raise typer.Exit(1)
    cautions = sum(bool(finding.caution) for finding in found)
    but = f", with {cautions} caution{'s' * (cautions > 1)}" if cautions else ""
    console.print(f"[green]{config.name} can start{but}.[/]")
