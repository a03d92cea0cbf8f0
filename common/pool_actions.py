"""What a pool asks for and reports: the results of its steps."""

from dataclasses import dataclass
from typing import Any, Literal

from common.ports import Call, MemberKey, Method, Role
from common.records import Stats


@dataclass(frozen=True, slots=True)
class Start:
    """Ask for a member."""

    member: MemberKey
    avoid: str = ""
    """Node on which the life before was lost; any other is better, for it may be the node that is cut off or dying."""


@dataclass(frozen=True, slots=True)
class Send:
    """Send a call."""

    call: Call


@dataclass(frozen=True, slots=True)
class Kill:
    """End a member; `dump` where it is alive and stuck."""

    member: MemberKey
    dump: bool = False


@dataclass(frozen=True, slots=True)
class Departed:
    """A slot is gone: its metrics go with it."""

    slot: str


@dataclass(frozen=True, slots=True)
class Note:
    """Something that an operator wants to read."""

    event: str
    """A short word, as in `restart`."""
    slot: str
    text: str


@dataclass(frozen=True, slots=True)
class Counted:
    """Something that metrics count, and nobody else needs to know."""

    role: Role
    what: Literal["restarts", "resizes", "timeouts", "unscored"]
    label: str = ""
    """Of timeouts: what was waited for. Of samples without a score: the reason."""
    amount: int = 1


@dataclass(frozen=True, slots=True)
class Done:
    """A task is answered, for the first time."""

    task_id: int
    method: Method
    role: Role
    slot: str
    """Who answered; empty where it was one that is lost."""
    payload: Any
    stats: Stats
    queued_s: float = 0.0
    """Seconds from queueing it, the last time, until a member got it."""
    took_s: float = 0.0
    """Seconds from then until the answer."""


@dataclass(frozen=True, slots=True)
class Duplicate:
    """A task is answered once more."""

    stats: Stats


@dataclass(frozen=True, slots=True)
class LostArgument:
    """What a task needed went with its node; the task is closed."""

    task_id: int


@dataclass(frozen=True, slots=True)
class GaveUp:
    """A task has used up its attempts or its time; it is closed."""

    task_id: int
    method: Method
    reason: Literal["timeout", "error"]
    error: BaseException


@dataclass(frozen=True, slots=True)
class Failed:
    """The pool cannot go on."""

    error: BaseException


@dataclass(frozen=True, slots=True)
class Orphaned:
    """Work of a member that is lost; between roster and pool only."""

    task_ids: tuple[int, ...]
    """In the order in which they were sent."""
    blamed: int | None = None
    """The one that seems to be the cause."""
    error: BaseException | None = None
    """What the blamed one did."""


Action = Start | Send | Kill | Departed | Note | Counted | Done | Duplicate | LostArgument | GaveUp | Failed | Orphaned
