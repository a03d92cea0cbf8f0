"""What a pool knows of its members: slots that keep their name, and the lives that follow each other in them."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from common.ports import MemberKey, Method
from common.records import Identity
from common.supervision import RestartBudget

State = Literal["starting", "syncing", "active", "draining"]
WAITING_AFTER_S = 10.0
"""Without a node: a process that starts on one has none for some seconds either."""


@dataclass(slots=True)
class Held:
    """A call that a member has not answered yet."""

    call_id: int
    method: Method
    task_id: int | None
    """None for calls that are no work."""
    since: float


@dataclass(slots=True)
class Member:
    """One life.

    starting ──ready──▶ syncing ──adopt or probe──▶ active ──scaled down──▶ draining
    """

    key: MemberKey
    since: float
    """When it came into its state; while it starts, when a node had room for it."""
    state: State = "starting"
    is_unplaced: bool = False
    """It has no node yet."""
    lacks: str = ""
    """Why: what it needs, and what is free."""
    is_waiting: bool = False
    """It has had none for WAITING_AFTER_S: none has room, or processes start slowly there."""
    work: dict[int, Held] = field(default_factory=dict)
    """Work that it holds, by call, in the order in which it was sent."""
    asked: dict[int, Held] = field(default_factory=dict)
    """What else it is asked, by call, but for heartbeats: to be ready, to adopt weights, to answer a probe."""
    described: Mapping[str, Any] = field(default_factory=dict)
    """What it said of itself when it was ready: node, pid, threads."""
    weights: Identity | None = None
    """Of the weights that it last used."""
    worked_until: float = 0.0
    """When it answered its last work."""
    is_behind: bool = False
    """Newer weights than those that it prefetches were published."""
    beat_at: float = 0.0
    """Last sign of life."""
    beat_call: int | None = None
    """A heartbeat that is not answered yet."""
    beat_sent_at: float = 0.0
    last_beat: Mapping[str, Any] = field(default_factory=dict)
    """What its last heartbeat said: memory."""

    @property
    def node(self) -> str:
        """Where it runs; empty where it is not known yet, or there are no nodes."""
        return str(self.described.get("node", ""))

    def load(self) -> int:
        """Calls with work that it holds."""
        return len(self.work)

    def hold(self, held: Held) -> None:
        """It has a call to answer."""
        (self.asked if held.task_id is None else self.work)[held.call_id] = held

    def let_go(self, call_id: int) -> None:
        """A call is answered."""
        self.work.pop(call_id, None)
        self.asked.pop(call_id, None)

    def enter(self, state: State, now: float) -> None:
        """Change state."""
        self.state, self.since = state, now

    def place(self, is_unplaced: bool, now: float) -> bool:
        """Whether it has a node, while it starts; returns whether it is news that it waits for one."""
        if self.is_unplaced and not is_unplaced:
            self.since = now
        before, self.is_unplaced = self.is_waiting, is_unplaced
        self.is_waiting = is_unplaced and now - self.since > WAITING_AFTER_S
        return self.is_waiting and not before

    def working_s(self, now: float) -> float:
        """For how long it has been at its oldest work; 0 where it has none."""
        oldest = self.oldest()
        return 0.0 if oldest is None else max(0.0, now - max(oldest.since, self.worked_until))

    def oldest(self) -> Held | None:
        """The work that it is at; what else it holds waits behind."""
        return next(iter(self.work.values()), None)


@dataclass(slots=True)
class Slot:
    """A place in the pool."""

    name: str
    budget: RestartBudget
    member: Member | None = None
    restart_at: float | None = None
    """When the next life begins."""
    given_up: str | None = None
    """Why no other life begins."""
    last_error: str = ""
    lost_on: str = ""
    """Node on which a life was lost last, as far as it is known."""

    @property
    def index(self) -> int:
        """Its number."""
        return int(self.name.rpartition("-")[2])

    @property
    def is_leaving(self) -> bool:
        """Whether it goes once its work is done."""
        return self.member is not None and self.member.state == "draining"

    def describe(self, now: float) -> dict[str, Any]:
        """For status: what an operator wants to know."""
        member = self.member
        return {
            "name": self.name,
            "state": "given_up" if self.given_up else member.state if member else "starting",
            "is_waiting": member is not None and member.is_waiting,
            "described": {**member.described, **member.last_beat} if member else {},
            "weights": str(member.weights) if member and member.weights is not None else "",
            "identity": member.weights if member else None,
            "held": member.load() if member else 0,
            "working_s": member.working_s(now) if member else 0.0,
            "restarts": self.budget.total,
            "heartbeat_age_s": now - member.beat_at if member and member.state != "starting" else None,
            "last_error": self.given_up or self.last_error,
        }
