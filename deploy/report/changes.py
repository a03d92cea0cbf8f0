"""What was changed while a run trained, as the report and the terminal show it: numbered lines in curves, and a table.

No files and no drawing: what `deploy.run_folder.contents` read goes in, words and places come out.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from deploy.ppo.settings_journal import Difference

WHO = {"operator": "operator", "guard": "guard rail"}
NAMES = {
    "temperature": "temperature",
    "learning_rate": "learning rate",
    "kl_target": "KL target",
    "kl_coef": "KL coefficient",
}


@dataclass(frozen=True, slots=True)
class Mark:
    """A line across a curve, between two updates."""

    at_step: int
    """Updates before it."""
    label: str


@dataclass(frozen=True, slots=True)
class ChangeRow:
    """One line of the table."""

    label: str
    """Of its mark."""
    update: int
    """First with it."""
    name: str
    before: str
    after: str
    who: str
    reason: str


def change_rows(changes: Sequence[Difference]) -> list[ChangeRow]:
    """One row per setting, numbered by the update from which it counts."""
    labels = {mark.at_step: mark.label for mark in marks(changes)}
    return [
        ChangeRow(
            label=labels[change.at_step],
            update=change.at_step + 1,
            name=NAMES[change.name],
            before=f"{change.before:g}",
            after=f"{change.after:g}",
            who=WHO[change.who],
            reason=change.reason,
        )
        for change in changes
    ]


def marks(changes: Sequence[Difference]) -> list[Mark]:
    """One per update from which something counts, numbered from 1."""
    steps = sorted({change.at_step for change in changes})
    return [Mark(step, str(number)) for number, step in enumerate(steps, start=1)]


def changes_sentence(changes: Sequence[Difference]) -> str:
    """How much was changed while it ran; nothing where nothing was."""
    if not changes:
        return ""
    names = ", ".join(dict.fromkeys(NAMES[change.name] for change in changes))
    times = "once" if len(changes) == 1 else f"{len(changes)} times"
    guards = sum(change.who == "guard" for change in changes)
    by = f", {guards} of them by a guard rail" if guards else ""
    return f"Settings were changed {times} while it ran{by}: {names}."
