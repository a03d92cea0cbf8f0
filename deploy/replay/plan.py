"""Which updates of a run can be recomputed, and from where. Pure: what is there goes in, what can be done comes out.

An update can be recomputed from a *start* before it, the newest that there is: a checkpoint that is kept, or the policy
with which PPO began. Needed on the way are each update's line of metrics.jsonl and its recorded trajectories.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any

from common.errors import DataError


@dataclass(frozen=True, slots=True)
class Start:
    """Where recomputing may begin."""

    step: int
    """Updates behind it."""
    lineage: int
    """Of its weights."""
    name: str
    """As in `step_000010`, or what PPO began with."""
    url: str | None = None
    """Of a checkpoint; None: what PPO began with."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What can be recomputed."""

    starts: Mapping[int, Start]
    """By update that can be, in order."""
    refused: Mapping[int, str]
    """Why other updates cannot be, by update, in order."""
    notes: tuple[str, ...] = ()
    """What else is gone, in words."""

    def as_dict(self) -> dict[str, Any]:
        """JSON-able."""
        return {
            "replayable": [
                {"update": update, "start": start.name, "start_step": start.step}
                for update, start in self.starts.items()
            ],
            "refused": [{"update": update, "why": why} for update, why in self.refused.items()],
            "notes": list(self.notes),
        }

    def start_of(self, update: int) -> Start:
        """Where recomputing an update begins; raises DataError with what is legal, and what to set to have more."""
        if update in self.starts:
            return self.starts[update]
        legal = f"Replayable are {spans(self.starts) or 'none'}"
        if update not in self.refused:
            raise DataError(f"there is no update {update} to replay. {legal}")
        raise DataError(
            f"update {update} cannot be replayed: {self.refused[update]}.\n{legal}. A run keeps more to begin from "
            "with ppo.checkpoint_every and ppo.keep_last, the number of newest checkpoints that stay"
        )


def plan(
    identities: Mapping[int, str],
    recorded: AbstractSet[int],
    checkpoints: Sequence[Start],
    *,
    beginning: Start,
    from_step: int | None = None,
) -> Plan:
    """Which updates can be recomputed.

    Args:
        identities: by update that has a line in metrics.jsonl, the identity of the weights that it made.
        recorded: updates whose trajectories are there.
        checkpoints: that are kept.
        beginning: the policy before PPO.
        from_step: begin with the newest start up to this one; None: with the newest before each update.
    """
    living = [one for one in checkpoints if identities.get(one.step) == f"{one.lineage}.{one.step}"]
    starts = [beginning, *(one for one in living if from_step is None or one.step <= from_step)]
    replayable, refused = dict[int, Start](), dict[int, str]()
    for update in sorted(identities.keys() | recorded):
        start = max((one for one in starts if one.step < update), key=lambda one: one.step)
        if why := _why_not(update, start, identities.keys(), recorded):
            refused[update] = why
        else:
            replayable[update] = start
    dead = [
        f"{one.name} is of weights {one.lineage}.{one.step}, which were gone back on: their later updates left nothing"
        for one in checkpoints
        if one not in living
    ]
    return Plan(replayable, refused, tuple(dead))


def _why_not(update: int, start: Start, done: AbstractSet[int], recorded: AbstractSet[int]) -> str:
    """Empty where it can be."""
    if update not in done:
        return "metrics.jsonl has no line of it: it is not done, or no step of it was finite, and it changed nothing"
    needed = range(start.step + 1, update + 1)
    if missing := [step for step in needed if step not in done]:
        return f"metrics.jsonl has no line of update {spans(missing)}, after {start.name}"
    if missing := [step for step in needed if step not in recorded]:
        return f"the trajectories of update {spans(missing)} are not there, and {start.name} is the newest start before"
    return ""


def spans(numbers: Iterable[int]) -> str:
    """As in `1-4, 7`."""
    pieces: list[list[int]] = []
    for number in sorted(numbers):
        if pieces and number == pieces[-1][1] + 1:
            pieces[-1][1] = number
        else:
            pieces.append([number, number])
    return ", ".join(f"{first}" if first == last else f"{first}-{last}" for first, last in pieces)
