"""What the guard rails saw and did, as the report and the terminal show it: lettered lines in curves, and a table.

Alarms follow from metrics.jsonl and evaluations.jsonl, by the limits of config.toml; rollbacks are in steering.json,
with what raised them. What went wrong in updates that were given up is told with the rollback.
"""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass

from common.config_file import parse_config
from common.errors import ConfigError
from deploy.exit_codes import GUARDED
from deploy.guards.guards import Notice
from deploy.guards.history import replayed
from deploy.ppo.settings_journal import Journal, Rollback, read_journal
from deploy.report.changes import Mark
from deploy.run_folder.address import read_end
from deploy.run_folder.contents import RunFiles


@dataclass(frozen=True, slots=True)
class GuardRow:
    """One line of the table."""

    label: str
    """Of its mark: A1, A2, … for alarms, R1, R2, … for rollbacks, S where the run was stopped."""
    at_step: int
    """Updates before its mark."""
    updates: str
    """From which update to which it lasted, or went."""
    what: str
    text: str


def guard_rows(run: RunFiles) -> list[GuardRow]:
    """Alarms, then rollbacks, each in order, then whether a guard has stopped it; none where there was nothing."""
    journal, end = read_journal(run.folder), read_end(run.folder)
    rollbacks = () if journal is None else journal.rollbacks
    rows = [_alarm(number, *pair) for number, pair in enumerate(_alarms(run, journal), start=1)]
    rows += [_rollback(number, rollback) for number, rollback in enumerate(rollbacks, start=1)]
    if end is not None and end.exit_code == GUARDED and run.updates:
        last = run.updates[-1].step
        rows.append(GuardRow(label="S", at_step=last, updates=str(last), what="run stopped", text=end.reason))
    return rows


def with_guards(marks: Sequence[Mark], rows: Sequence[GuardRow]) -> list[Mark]:
    """Marks of other things, and those of guard rails among them; those of one place are one mark."""
    labels: dict[int, list[str]] = {}
    for mark in (*marks, *(Mark(row.at_step, row.label) for row in rows)):
        labels.setdefault(mark.at_step, []).append(mark.label)
    return [Mark(step, " ".join(labels[step])) for step in sorted(labels)]


def guards_sentence(rows: Sequence[GuardRow]) -> str:
    """How often guard rails were raised, went back and stopped the run; nothing where they did not."""
    first = [row.label[0] for row in rows]
    counts = [(first.count("A"), "alarm"), (first.count("R"), "rollback"), (first.count("S"), "stop")]
    told = [f"{number} {word}{'s' if number > 1 else ''}" for number, word in counts if number]
    return f"Guard rails: {', '.join(told)}." if told else ""


def _alarms(run: RunFiles, journal: Journal | None) -> list[tuple[Notice, Notice | None]]:
    """Each alarm as it was raised, and as it was cleared, if it was; none where the configuration is of no PPO."""
    try:
        config = parse_config(tomllib.loads(run.config_text or ""), where="config.toml")
    except ConfigError:  # of an older version: what its guards would have said is not known
        return []
    if config.ppo is None:
        return []
    _, notices = replayed(config, run.updates, run.evaluations, () if journal is None else journal.rollbacks)
    raised = [notice for notice in notices if notice.kind == "raised"]
    cleared = {(n.alarm.guard, n.alarm.since_step): n for n in notices if n.kind == "cleared"}
    return [(notice, cleared.get((notice.alarm.guard, notice.alarm.since_step))) for notice in raised]


def _alarm(number: int, raised: Notice, cleared: Notice | None) -> GuardRow:
    alarm = raised.alarm
    end = "the end" if cleared is None else str(cleared.step)
    return GuardRow(
        label=f"A{number}",
        at_step=alarm.since_step - 1,
        updates=f"{alarm.since_step} to {end}",
        what=f"alarm of guard {alarm.guard}",
        text=alarm.text,
    )


def _rollback(number: int, rollback: Rollback) -> GuardRow:
    return GuardRow(
        label=f"R{number}",
        at_step=rollback.to_step,
        updates=f"{rollback.from_step} back to {rollback.to_step}",
        what="rollback",
        text=rollback.reason,
    )
