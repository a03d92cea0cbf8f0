"""Figures and settings as tables for people, and figures as JSON for programs."""

import json
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy.config_fields import Setting
from deploy.explain.figures import Group


def print_groups(name: str, groups: Sequence[Group], console: Console) -> None:
    """Print one table, the groups one below the other: what, how much, what it follows from."""
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(overflow="fold", ratio=3)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim", overflow="fold", ratio=5)
    for group in groups:
        table.add_row()
        table.add_row(Text(group.title, "bold"))
        for figure in group.figures:
            style = "yellow" if figure.value is None else "bold green"
            table.add_row(Text(figure.what), Text(figure.shown, style), Text(figure.because))
    console.print(Text(name, "bold cyan"))
    console.print(table)


def to_json(name: str, groups: Sequence[Group]) -> str:
    """Bare numbers by group and name; null where one cannot be known before the run."""
    values = {group.name: {figure.name: figure.value for figure in group.figures} for group in groups}
    return json.dumps({"name": name, **values}, indent=1) + "\n"


def print_settings(settings: Sequence[Setting], console: Console) -> None:
    """Print settings one below the other: name and default, type, meaning."""
    for setting in settings:
        field = setting.field
        where = f'  (type = "{setting.tag}")' if setting.tag else ""
        line = Text.assemble((setting.path, "bold cyan"), (where, "cyan"))
        if field.default in ("required", "none"):
            line.append(f"  {field.default}", "yellow")
        else:
            line.append(f" = {field.default}", "green")
        if field.may_change:
            line.append("  ↻ may change when a run goes on", "dim")
        console.print(line, soft_wrap=True)
        console.print(Text(f"  {field.type.replace('`', '')}", "dim"), soft_wrap=True)
        console.print(Text(f"  {field.meaning}"), soft_wrap=True)
