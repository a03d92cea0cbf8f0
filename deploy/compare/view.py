"""Some runs side by side in the terminal: the tables of `deploy.compare.compare`, with rich."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy.compare.compare import Comparison
from deploy.compare.figures import Duel, Row
from deploy.console import one_line
from deploy.report.words import number


def print_comparison(comparison: Comparison, console: Console) -> None:
    """Numbers, who wins, and the settings that differ."""
    _print_table("Numbers", comparison.numbers, comparison.names, console)
    for duel in comparison.duels:
        console.print(Text(duel_sentence(duel), "" if duel.rate is not None else "yellow"))
    console.print()
    if comparison.settings:
        _print_table("Settings that differ", comparison.settings, comparison.names, console)
    else:
        console.print(Text("Settings: the same, but for the names."))
    for name in comparison.without_config:
        console.print(Text(f"Settings of {name}: not known, for it has no config.toml.", "yellow"))
    console.print()


def duel_sentence(duel: Duel) -> str:
    """Who wins, and how sure that is."""
    if duel.rate is None or duel.interval is None:
        return f"{duel.one} against {duel.other}: no win rate from the files, for {duel.why_not}."
    low, high = (100 * bound for bound in duel.interval)
    one, other = duel.steps
    return (
        f"{duel.one} against {duel.other}: the judge prefers {duel.one} on {number(duel.rate, 'percent')} of "
        f"{duel.prompts} held-out prompts (95 % interval {low:.1f}–{high:.1f} %), after update {one} and {other}."
    )


def _print_table(title: str, rows: Sequence[Row], names: Sequence[str], console: Console) -> None:
    table = Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))
    table.add_column("", overflow="fold")
    for name in names:
        table.add_column(Text(name, "bold cyan"), overflow="fold")
    for row in rows:
        table.add_row(Text(row.label, "dim"), *(Text(one_line(cell)) for cell in row.cells))
    console.print(table)
    console.print()
