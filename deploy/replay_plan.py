"""Which updates of a run can be recomputed, and from where. Pure: what is there goes in, what can be done comes out.

An update can be recomputed from a *start* before it, the newest that there is: a checkpoint that is kept, or the policy
with which PPO began. Needed on the way are each update's line of metrics.jsonl and its recorded trajectories.
"""

from collections.abc import Iterable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass

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

    def start_of(self, update: int) -> Start:
        """Where recomputing an update begins; raises DataError with what is legal, and what to set to have more."""
        if update in self.starts:
            return self.starts[update]
        known = self.refused.keys() | self.starts.keys()
        why = self.refused.get(update, f"the run has no such update; it has {spans(known) or 'none yet'}")
        raise DataError(
            f"update {update} cannot be replayed: {why}.\nReplayable are {spans(self.starts) or 'none'}. "
            "A run keeps more to begin from with ppo.keep_last (newest checkpoints that stay) and ppo.checkpoint_every"
        )


def plan(
    identities: Mapping[int, str],
    recorded: AbstractSet[int],
    checkpoints: Sequence[Start],
    *,
    beginning: Start | str,
    from_step: int | None = None,
) -> Plan:
    """Which updates can be recomputed.

    Args:
        identities: by update that has a line in metrics.jsonl, the identity of the weights that it made.
        recorded: updates whose trajectories are there.
        checkpoints: that are kept.
        beginning: what PPO began with, or why that cannot be used.
        from_step: begin with this start or an earlier one; None: with the newest before each update.
    """
    living = [one for one in checkpoints if identities.get(one.step) == f"{one.lineage}.{one.step}"]
    starts = [one for one in living if from_step is None or one.step <= from_step]
    if isinstance(beginning, Start):
        starts.append(beginning)
    replayable, refused = dict[int, Start](), dict[int, str]()
    for update in sorted(identities.keys() | recorded):
        start = max((one for one in starts if one.step < update), key=lambda one: one.step, default=None)
        why = _why_not(update, start, identities, recorded, beginning)
        if start is None or why:
            refused[update] = why
        else:
            replayable[update] = start
    dead = [f"checkpoint {one.name} is of weights {one.lineage}.{one.step}, which were gone back on: nothing that came "
            "of them is on record" for one in checkpoints if one not in living]  # fmt: skip
    return Plan(replayable, refused, tuple(dead))


def _why_not(
    update: int, start: Start | None, identities: Mapping[int, str], recorded: AbstractSet[int], beginning: Start | str
) -> str:
    """Empty where it can be."""
    if update not in identities:
        return "it has no line in metrics.jsonl: it is not done, or no step of it was finite and nothing was changed"
    if start is None:
        why = f", and {beginning}" if isinstance(beginning, str) else ""
        return f"no checkpoint before it is kept{why}"
    missing = [step for step in range(start.step + 1, update + 1) if step not in identities]
    if missing:
        return f"updates {spans(missing)} after {start.name} have no line in metrics.jsonl"
    missing = [step for step in range(start.step + 1, update + 1) if step not in recorded]
    if missing:
        return f"the trajectories of updates {spans(missing)}, which come after {start.name}, are not there"
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
