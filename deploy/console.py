"""The end of a run in the terminal: the numbers of the report in brief, from the same files. Draws no curves."""

import textwrap
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table
from rich.text import Text

from deploy.report import words
from deploy.report.absences import absences, ppo_broken_off, why_absent
from deploy.report.changes import changes_sentence
from deploy.report.guards import guard_rows, guards_sentence
from deploy.report.preferences import length_warning, preference_measures
from deploy.run_folder.contents import HeldoutLine, RunFiles, read_run, stage_seconds

MAX_TEXTS = 6
MAX_CHARACTERS = 320
"""Of one text; longer ones end in an ellipsis."""
BAR_CHARACTERS = 24
_STYLES = {"better": "bold green", "worse": "bold red", "same": "bold", "": ""}


def print_summary(run_folder: Path, console: Console) -> None:
    """Print result, before/after numbers, seconds per stage, some texts and where the report is.

    Raises:
        DataError: there is no such folder, or one of its files is malformed; names file and line.
    """
    run = read_run(run_folder)
    console.print()
    _print_result(run, console)
    _print_numbers(run, console)
    _print_stages(run, console)
    _print_texts(run.heldout[:MAX_TEXTS], why_absent(run)["evaluate"], console)
    _print_report_path(run_folder / "report.html", console)


def one_line(text: str) -> str:
    """The text on one line, without characters that would steer the terminal, cut to MAX_CHARACTERS."""
    printable = "".join(
        letter if letter.isprintable() or letter.isspace() else "\N{REPLACEMENT CHARACTER}" for letter in text
    )
    line = " ".join(printable.split())
    return line if len(line) <= MAX_CHARACTERS else line[: MAX_CHARACTERS - 1] + "…"


def _print_result(run: RunFiles, console: Console) -> None:
    """Wrapped here, since rich would part a number from its percent sign."""
    bound = words.result_sentence(run, why_absent(run)).replace(" %", "\N{NO-BREAK SPACE}%")
    console.print(Text(run.name, "bold cyan"))
    console.print(Text(textwrap.fill(bound, console.width).replace("\N{NO-BREAK SPACE}", " ")))
    if changed := changes_sentence(run.changes):
        console.print(Text(changed, "yellow"))
    if guarded := guards_sentence(guard_rows(run)):
        console.print(Text(guarded, "yellow"))
    console.print()


def _table(title: str) -> Table:
    return Table(title=title, title_justify="left", title_style="bold", box=None, pad_edge=False, padding=(0, 2, 0, 0))


def _print_numbers(run: RunFiles, console: Console) -> None:
    rows = [*words.measures(run.summary), *preference_measures(run.summary)]
    table = _table("Before and after")
    table.add_column("", overflow="fold")
    for name in ("before", "after", "change"):
        table.add_column(Text(name, "dim"), justify="right", no_wrap=True)
    table.add_column(Text("good", "dim"), justify="center", no_wrap=True)
    for row in rows:
        if not row.is_absent:
            change = Text(
                words.VERDICT_MARKS[row.verdict] + row.change_text if row.change_text else "", _STYLES[row.verdict]
            )
            before = row.before_text if row.has_before else ""
            arrow = Text(words.GOOD_ARROWS[row.good], "dim")
            table.add_row(Text(row.label), Text(before, "dim"), Text(row.after_text, "bold"), change, arrow)
    if table.row_count:
        console.print(table)
    for line in absences(rows, why_absent(run)):
        console.print(Text(line, "yellow"))
    if alarm := words.alarm_sentence(run.summary):
        console.print(Text(alarm, "bold yellow"))
    warning = length_warning(run.summary.rm_preferences if run.summary else None)
    if warning is not None:
        console.print(Text(warning, "bold red"))
    console.print()


def _print_stages(run: RunFiles, console: Console) -> None:
    seconds = stage_seconds(run)
    if not seconds:
        console.print(Text("Seconds per stage: not recorded; no stage has finished.\n", "yellow"))
        return
    known = [spent for spent in seconds.values() if spent]
    table = _table(f"Time by stage, {words.duration(sum(known))} in all")
    for justify in ("left", "right", "left"):
        table.add_column("", justify=justify, no_wrap=True)
    table.show_header = False
    for stage, spent in seconds.items():
        bar = "━" * round(BAR_CHARACTERS * (spent or 0.0) / max(known, default=1.0))
        table.add_row(Text(stage), Text(words.duration(spent)), Text(bar, "cyan"))
    console.print(table)
    if broken_off := ppo_broken_off(run):
        console.print(Text(f"{broken_off}; its time is not in the table.", "yellow"))
    console.print()


def _print_texts(lines: Sequence[HeldoutLine], why_none: str, console: Console) -> None:
    if not lines:
        console.print(Text(f"Texts before and after: not recorded; {why_none}.\n", "yellow"))
        return
    table = _table("Held-out prompts")
    table.padding = (0, 3, 1, 0)
    table.add_column(Text("before PPO", "dim"), ratio=1, overflow="fold")
    table.add_column(Text("after PPO", "dim"), ratio=1, overflow="fold")
    table.expand = True
    for line in lines:
        before = _text(line.prompt, line.before, line.score_before, line.judge_before, style="")
        after = _text(line.prompt, line.after, line.score_after, line.judge_after, style="bold")
        table.add_row(before, after)
    console.print(table)
    console.print()


def _text(prompt: str, response: str, score: float | None, judge: float | None, *, style: str) -> Text:
    """The prompt dim, the response, and on a line of their own its marks."""
    start, rest = one_line(prompt), one_line(response)
    marks = f"score {words.number(score, 'signed')}"
    marks += "" if judge is None else f" · judge {words.number(judge, 'percent')}"
    return Text.assemble((start, "dim"), words.gap_between(start, rest), (rest, style), "\n", (marks, "cyan"))


def _print_report_path(path: Path, console: Console) -> None:
    if path.exists():
        console.print(Text.assemble("Report  ", (str(path), "bold cyan")), soft_wrap=True)
    else:
        console.print(Text(f"No report yet: {path} is not written.", "yellow"), soft_wrap=True)
