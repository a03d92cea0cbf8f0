"""`steering.json`: which settings each update was done with, and who wanted them so. Pure but for reading the file.

A run that is cut off and goes on from an older checkpoint, or is replayed, asks here and meets the same settings at the
same updates. Written by `steering.py` before the update that a change is for; read by the report and by replay.
"""

from dataclasses import fields
from datetime import datetime
from pathlib import Path
from typing import Final, Literal

from pydantic import TypeAdapter

from common.run_settings import RunSettings
from deploy.run_folder.checked_json import Shape, read_json_as

FILE: Final = "steering.json"
"""In the run folder."""
Who = Literal["operator", "guard"]


class Change(Shape):
    """Settings from an update on.

    An update without a finite step is tried again with other samples, so that the step alone does not tell its attempts
    apart; the prompts drawn before each of them do.
    """

    at_step: int
    """Updates done when it comes in force: update `at_step + 1` is the first with it."""
    from_draw: int
    """Prompts drawn before the first batch with it."""
    settings: RunSettings
    """All of them, after the change."""
    who: Who
    reason: str
    time: datetime
    """When it was asked for, UTC."""
    lineage: int
    """Of the weights then."""


class Rollback(Shape):
    """A guard rail went back to a checkpoint, and on from there with other prompts."""

    to_step: int
    """Updates behind the checkpoint."""
    from_step: int
    """Updates done before."""
    next_draw_index: int
    """Prompt cursor, which does not go back."""
    reason: str
    time: datetime
    lineage: int
    """Of the weights that were given up."""


class Difference(Shape):
    """One setting that a change has changed."""

    at_step: int
    """As in Change."""
    name: str
    before: float
    after: float
    who: Who
    reason: str


class Journal(Shape):
    """Settings at the start and every change since, in the order in which they were asked for."""

    start: RunSettings
    """As configured."""
    changes: tuple[Change, ...] = ()
    """Those that count."""
    dead: tuple[Change, ...] = ()
    """Those of updates that a rollback or a later order has made never happen."""
    rollbacks: tuple[Rollback, ...] = ()

    @property
    def newest(self) -> RunSettings:
        """After all changes, those to come included."""
        return self.changes[-1].settings if self.changes else self.start

    def in_force(self, step: int, draw: int | None = None) -> RunSettings:
        """Settings of the update after `step` updates.

        Args:
            step: updates done.
            draw: prompts drawn before; tells apart the attempts of an update without a finite step. None: the last one.
        """
        last = self.start
        for change in self.changes:
            if not _is_later(change, step, draw):
                last = change.settings
        return last

    def reach(self, step: int, draw: int) -> "Journal":
        """An update begins. What was meant for the one after a step comes in force already where that step had no
        finite gradient, and is tried again.
        """

        def early(change: Change) -> bool:
            return change.at_step == step + 1 and change.from_draw <= draw

        if not any(early(change) for change in self.changes):
            return self
        moved = tuple(c.model_copy(update={"at_step": step}) if early(c) else c for c in self.changes)
        return self.model_copy(update={"changes": moved})

    def add(self, change: Change) -> "Journal":
        """With one more; recorded ones that come later, as after going back to a checkpoint, never come in force."""
        return self._with(change, [c for c in self.changes if _is_later(c, change.at_step, change.from_draw)])

    def roll_back_to(self, rollback: Rollback) -> "Journal":
        """The settings that counted last stay in force over a rollback; changes after that step are dead."""
        present = Change(
            at_step=rollback.to_step,
            from_draw=0,
            settings=self.newest,
            who="guard",
            reason=f"kept over a rollback: {rollback.reason}",
            time=rollback.time,
            lineage=rollback.lineage,
        )
        later = [change for change in self.changes if change.at_step > rollback.to_step]
        journal = self._with(present, later) if later else self
        return journal.model_copy(update={"rollbacks": (*self.rollbacks, rollback)})

    def differences(self, *, before_step: int | None = None) -> list[Difference]:
        """The changes that count, setting by setting; those in force before update `before_step`, or all."""
        found: list[Difference] = []
        before = self.start
        for change in self.changes:
            if before_step is not None and change.at_step >= before_step:
                continue
            found += [
                Difference(at_step=change.at_step, name=name, before=old, after=new, who=change.who,
                           reason=change.reason)
                for name, old, new in differing(before, change.settings)
            ]  # fmt: skip
            before = change.settings
        return found

    def _with(self, change: Change, dead: list[Change]) -> "Journal":
        living = tuple(c for c in self.changes if c not in dead)
        return self.model_copy(update={"changes": (*living, change), "dead": (*self.dead, *dead)})


def differing(before: RunSettings, after: RunSettings) -> list[tuple[str, float, float]]:
    """Name, value before and value after of each setting that differs; a run has a setting throughout, or never."""
    pairs = [(field.name, getattr(before, field.name), getattr(after, field.name)) for field in fields(RunSettings)]
    return [(name, old, new) for name, old, new in pairs if old != new]


def read_journal(folder: Path) -> Journal | None:
    """The journal of a run folder; None where nothing was ever changed.

    Raises:
        DataError: it cannot be understood; names file and line.
    """
    path = folder / FILE
    return read_json_as(path, TypeAdapter(Journal)) if path.exists() else None


def _is_later(change: Change, step: int, draw: int | None) -> bool:
    if draw is None:
        return change.at_step > step
    return (change.at_step, change.from_draw) > (step, draw)
