"""What the policy decides, and what it remembers from one observation to the next."""

from dataclasses import dataclass
from typing import Literal

Direction = Literal["up", "down", "hold"]
Cause = Literal[
    "asked",
    "starting",
    "unsteady",
    "given_up",
    "replicas",
    "limit",
    "steady",
    "confirming",
    "cooldown",
    "wait",
    "spare",
    "vain",
]
"""`wait`, `spare` and `vain` change the target, the others hold it."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How many workers there shall be, and why."""

    target: int
    direction: Direction
    cause: Cause
    reason: str
    """In words, for event log and status."""


@dataclass(frozen=True, slots=True)
class Trial:
    """Workers that were added, until it is known what came of it."""

    before: int
    """Workers without them."""
    before_s: float
    """What an update took then."""
    saving_s: float
    """What they shall save of it."""


@dataclass(frozen=True, slots=True)
class State:
    """What is remembered."""

    target: int | None = None
    """How many are known to be wanted; another number in an observation is somebody else's order."""
    active: int | None = None
    """Workers at the last observation."""
    changed_s: float | None = None
    """When the target was changed last; None: never."""
    wishes: tuple[int, ...] = ()
    """Numbers that the last updates in a row would have had, all on one side of the present one."""
    updates_s: tuple[float, ...] = ()
    """What the last steady updates with the present number took."""
    trial: Trial | None = None
    """What the last change is judged by, if it added workers."""
    ceiling: int | None = None
    """More were tried in vain."""
    ceiling_until_s: float = 0.0
    """When that is forgotten."""
