"""Samples and events of a run in the terminal. What the model wrote, and what a message holds, steers no terminal."""

from collections.abc import Iterable

from rich.console import Console
from rich.text import Text

from deploy.console import one_line
from deploy.report.words import gap_between, number
from deploy.run_folder.history import EventRow, SampleRow

EVENT_STYLES = {
    "restart": "yellow",
    "lost": "yellow",
    "error": "yellow",
    "storage": "yellow",
    "given_up": "bold red",
    "learner_lost": "bold red",
    "nonfinite_update": "bold red",
    "guard_alarm": "bold red",
    "guard_stop": "bold red",
    "rolled_back": "bold red",
    "checkpoint_failed": "bold red",
    "checkpoint_damaged": "bold red",
    "settings": "cyan",
    "scale": "cyan",
    "pause": "cyan",
    "resume": "cyan",
}
"""By kind of event; others are plain."""


def print_samples(rows: Iterable[SampleRow], console: Console, *, sought: str | None = None) -> None:
    """A line of facts and the text, for each; the text that was looked for is marked."""
    for row in rows:
        console.print(_facts(row))
        if row.response_before is not None:
            console.print(_text("before  ", row.prompt, row.response_before, sought))
        console.print(_text("after   " if row.response_before is not None else "", row.prompt, row.response, sought))


def _facts(row: SampleRow) -> Text:
    facts = [row.kind, f"score {number(row.score, 'signed')}"]
    if row.step is not None:
        facts.insert(0, f"update {row.step}")
    if row.score_before is not None:
        facts[-1] = f"score {number(row.score_before, 'signed')} → {number(row.score, 'signed')}"
    if row.kl_seq_sum is not None:
        facts.append(f"KL {row.kl_seq_sum:.2f} nats")
    if row.draw_index is not None:
        facts.append(f"draw {row.draw_index}")
    return Text(" · ".join(facts), "cyan")


def _text(label: str, prompt: str, response: str, sought: str | None) -> Text:
    start, rest = one_line(prompt), one_line(response)
    text = Text.assemble(f"  {label}", (start, "dim"), gap_between(start, rest), (rest, "bold"))
    if sought is not None:
        text.highlight_words([sought], "black on yellow", case_sensitive=False)
    return text


def print_events(rows: Iterable[EventRow], console: Console) -> None:
    """One line for each."""
    for row in rows:
        console.print(
            Text.assemble(
                (f"{row.time:%Y-%m-%d %H:%M:%S} ", "dim"),
                (f"{one_line(row.event):<18} ", EVENT_STYLES.get(row.event, "")),
                (f"{one_line(row.slot):<10} ", "dim"),
                one_line(row.text),
            ),
            soft_wrap=True,
        )
