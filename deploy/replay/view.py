"""What can be replayed, and what a replay found, in the terminal. Knows no learner."""

from collections.abc import Sequence
from itertools import groupby

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy.replay.plan import Plan, spans
from deploy.replay.result import Replay, UpdateReplay

SHOWN = ("policy_loss", "value_loss", "kl_seq_sum", "kl_token_mean", "kl_coef", "approx_kl", "entropy", "clip_fraction",
         "grad_norm", "score_mean", "advantage_std", "learning_rate")  # fmt: skip
"""Metrics that are shown even where they do not differ; --json has all."""
MAX_DIFFERENT = 12
"""Metrics shown that differ, the largest differences first; and updates in a row."""


def print_plan(run: str, plan: Plan, console: Console) -> None:
    """Which updates can be replayed, from where, and why others cannot."""
    can, known = len(plan.starts), len(plan.starts) + len(plan.refused)
    console.print(Text.assemble((run, "bold cyan"), f": {can} of {known} updates can be replayed"))
    if plan.starts:
        table = _table("updates", "begins with", "recomputed on the way")
        for start, updates in groupby(plan.starts, key=lambda update: plan.starts[update]):
            numbers = list(updates)
            first, last = numbers[0] - start.step, numbers[-1] - start.step
            table.add_row(spans(numbers), Text(start.name), f"{first}" if first == last else f"{first} to {last}")
        console.print(table)
    for why, refused in groupby(plan.refused, key=lambda update: plan.refused[update]):
        console.print(Text.assemble(("not ", "yellow"), f"{spans(refused)}: {why}"))
    for note in plan.notes:
        console.print(Text(note, "dim"))


def print_replay(found: Replay, console: Console) -> None:
    """Updates, the same ones folded into one line; numbers of the first that differs, or of the last; the verdict."""
    asked = found.updates[-1].update
    console.print(
        Text.assemble(
            (found.run, "bold cyan"),
            f": update {asked}, recomputed from {found.start}, after update {found.start_step}",
        )
    )
    table = _table("update", "policy", "largest difference of metrics", "of the kept checkpoint")
    for (is_same, _), group in groupby(found.updates, key=lambda one: (one.is_same, one.weights)):
        if is_same:
            table.add_row(*_folded(list(group)))
            continue
        different = list(group)
        for one in different[:MAX_DIFFERENT]:
            table.add_row(*_row(one), style="bold red")
        if (more := len(different) - MAX_DIFFERENT) > 0:
            table.add_row("…", f"{more} more that differ; --json has all", style="bold red")
    console.print(table)
    shown = next((one for one in found.updates if one.update == found.first_different), found.updates[-1])
    _print_metrics(shown, console)
    _print_verdict(found, console)


def _folded(updates: Sequence[UpdateReplay]) -> tuple[str, str, str, str]:
    """The row of updates, one after the other, of which each is the same as recorded."""
    first, last = updates[0].update, updates[-1].update
    kept = sum(one.tensors is not None for one in updates)
    return (
        f"{first}" if first == last else f"{first} – {last}",
        updates[0].weights,
        "0",
        "–" if not kept else "0" if kept == 1 else f"0, each of {kept}",
    )


def _row(one: UpdateReplay) -> tuple[str, str, Text, Text]:
    metric, tensors = one.largest_metric, one.tensors
    kept = Text("–") if tensors is None else _named(tensors.difference, tensors.name)
    return str(one.update), one.weights, _named(metric.difference, metric.name), kept


def _print_metrics(one: UpdateReplay, console: Console) -> None:
    different = sorted(
        (name for name, compared in one.metrics.items() if compared.difference),
        key=lambda name: -one.metrics[name].difference,
    )
    table = _table(f"update {one.update}", "recorded", "recomputed", "difference")
    for name in dict.fromkeys((*different[:MAX_DIFFERENT], *SHOWN)):
        if (compared := one.metrics.get(name)) is not None:
            numbers = (compared.recorded, compared.recomputed)
            shown = ["not finite, or absent" if number is None else f"{number:.9g}" for number in numbers]
            table.add_row(
                Text(name), *shown, _named(compared.difference), style="bold red" if compared.difference else ""
            )
    console.print(table)
    if (more := len(different) - MAX_DIFFERENT) > 0:
        console.print(Text(f"and {more} more that differ; --json has all"))


def _print_verdict(found: Replay, console: Console) -> None:
    metrics, weights = found.largest_metric_difference, found.largest_weight_difference
    if found.is_same and weights is None:
        console.print(Text("✓ the same metrics; no hash of the weights was recorded, and no checkpoint tells", "green"))
    elif found.is_same:
        console.print(Text("✓ the same: largest difference 0 in metrics, 0 in weights", "green"))
    else:
        unknown = "by an unknown amount, for no checkpoint tells"
        of_weights = unknown if weights is None else f"by up to {weights:.3g}" if weights else "not at all"
        console.print(
            Text(
                f"✗ differs from update {found.first_different} on: metrics by up to {metrics:.3g}, weights "
                f"{of_weights}. Replays are equal to the last bit on the same kind of machine, with the same versions "
                "of libraries, from files that nobody changed",
                "bold red",
            )
        )


def _named(difference: float, name: str = "") -> Text:
    return Text(f"{difference:.3g}" + (f" ({name})" if name else ""))


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for number, column in enumerate(columns):
        table.add_column(Text(column, "dim"), justify="left", overflow="fold", no_wrap=number == 0)
    return table
