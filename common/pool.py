"""A pool that answers tasks whatever becomes of its members: a pure machine. Events go in, actions come out.

It knows no Ray, no thread and no clock; `deploy/ppo/supervisor.py` moves actions and replies between it
and a transport.
Rollout pool and reward pool are both this machine. Who is in it, and when a member is lost, is common/roster.py.

    submit ─▶ queue ─▶ least-loaded active member ─▶ Done | GaveUp | LostArgument
                ▲                │
                └── lost member ─┘   at once, to the front, with the same seeds; the first valid answer wins
"""

import itertools
import math
from collections import OrderedDict, deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np

from common.errors import ConfigError, WeightsMismatchError
from common.member import Held, Member, Slot
from common.pool_actions import Action, Counted, Done, Duplicate, Failed, GaveUp, LostArgument, Note, Orphaned
from common.ports import MemberKey, Method, Reply, Role
from common.reasons import weights_lost, words
from common.records import GenerateRequest, Stats
from common.roster import Roster
from common.supervision import Limits

RECENT = 256
"""Answered tasks whose waits a status tells of."""


@dataclass(slots=True)
class Task:
    """Work that somebody waits for."""

    task_id: int
    method: Method
    argument: Any
    queued_at: float
    """When it was queued, the last time."""
    sent_at: float | None = None
    """When it was sent first: its budget counts from then."""
    sent: int = 0
    """Times that it was sent."""
    attempts: int = 0
    """Times that it failed by its own fault, as far as one can tell."""
    avoid: set[str] = field(default_factory=set)
    """Slots on which it failed."""
    calls: list[int] = field(default_factory=list)
    """All in which it was sent."""


class Pool:
    """Members of one role, and the work that they share.

    Args:
        role: `rollout` or `reward`.
        limits: times, attempts, restarts.
        call_ids: one iterator for all pools of a run, so that ids never meet.
    """

    def __init__(self, role: Role, limits: Limits, *, call_ids: Iterator[int] | None = None) -> None:
        self.role = role
        self.limits = limits
        self.tasks: dict[int, Task] = {}
        self._ids = call_ids if call_ids is not None else itertools.count()
        self.roster = Roster(role, limits, self._ids)
        self._queue: OrderedDict[int, None] = OrderedDict()
        """Ids of tasks; a dict, for one may leave from the middle."""
        self._forgotten: set[int] = set()
        """Calls whose answers count nowhere."""
        self._waited: deque[float] = deque(maxlen=RECENT)
        """Seconds that the last tasks were queued."""

    @property
    def num_queued(self) -> int:
        """Tasks that no member has."""
        return len(self._queue)

    # --- what others want

    def resize(self, target: int, now: float) -> list[Action]:
        """Have `target` members; at least `limits.min_members`."""
        return self._absorb(self.roster.resize(target, now), now)

    def publish(self, weights: Any, now: float) -> list[Action]:
        """New weights; they ride on the requests, those that wait to be sent included, see
        `Roster.publish` for who is told before.
        """
        for task in (self.tasks[task_id] for task_id in self._queue):
            if task.sent == 0 and isinstance(task.argument, GenerateRequest):
                task.argument = replace(task.argument, weights=weights)
        return self.roster.publish(weights, now)

    def leave_nodes(self, nodes: frozenset[str], now: float) -> list[Action]:
        """These nodes are about to go: their members are replaced elsewhere, and their work moves at once."""
        return self._absorb(self.roster.leave_nodes(nodes, now), now)

    def place(self, unplaced: Mapping[MemberKey, str], now: float) -> list[Action]:
        """These members, of whatever pool, have no node yet, for want of what is said."""
        return self.roster.place(unplaced, now)

    def submit(self, method: Method, argument: Any, now: float, *, ahead: bool = False) -> int:
        """Queue work, `ahead` of all that waits or behind it; returns the id under which `Done`, `LostArgument` or
        `GaveUp` will come.
        """
        task_id = next(self._ids)
        self.tasks[task_id] = Task(task_id, method, argument, queued_at=now)
        self._queue[task_id] = None
        self._queue.move_to_end(task_id, last=not ahead)
        return task_id

    def forget(self, task_id: int) -> None:
        """Nobody waits for this any more; its answer, if it still comes, counts nowhere."""
        task = self.tasks.pop(task_id, None)
        if task is None:
            return
        self._queue.pop(task_id, None)
        self._forgotten.update(call_id for call_id in task.calls if call_id in self.roster.calls)

    # --- what happens

    def owns(self, reply: Reply) -> bool:
        """Whether the reply answers a call of this pool, for the first time."""
        return reply.call_id in self.roster.calls

    def on_reply(self, reply: Reply, now: float) -> list[Action]:
        """A call is answered."""
        held, slot, member = self.roster.answered(reply, now)
        if held.task_id is not None and reply.error is None:
            actions = self._on_answer(reply, held, held.task_id, slot, now)
        elif held.task_id is not None:
            actions = self._on_error(reply, held, held.task_id, slot, member, now)
        elif slot is not None and member is not None:
            actions = self.roster.on_control(reply, held, slot, member, now)
        else:
            actions = []
        if slot is not None:
            actions += self.roster.leave_if_idle(slot)
        return self._absorb(actions, now)

    def tick(self, now: float) -> list[Action]:
        """Time has passed."""
        actions: list[Action] = []
        for task in list(self.tasks.values()) if self.limits.budget_s < math.inf else ():
            if task.sent_at is not None and now - task.sent_at > self.limits.budget_s:
                error = TimeoutError(f"{task.method} was not answered within {self.limits.budget_s:g} s in all")
                actions += [Counted(self.role, "timeouts", "budget"), *self._close(task, "timeout", error)]
        return self._absorb(actions + self.roster.tick(now), now)

    def describe(self, now: float) -> dict[str, Any]:
        """For status and metrics: how many there shall be and are, what waits, and all slots."""
        queued_at = [self.tasks[task_id].queued_at for task_id in self._queue]
        return {
            "target": self.roster.target,
            "active": len(self.roster.active()),
            "queued": len(queued_at),
            "queue_age_s": now - min(queued_at, default=now),
            "queue_wait_p95_s": float(np.quantile(self._waited, 0.95)) if self._waited else 0.0,
            "slots": [slot.describe(now) for slot in self.roster.slots.values()],
        }

    def dispatch(self, now: float) -> list[Action]:
        """Hand queued tasks to the least loaded members that have room; first come, first served.

        A member that is at work gets another call only where enough stays queued for all others, those that are to
        come included: bound to a member earlier than that, a task waits behind a long one while others idle.
        """
        openings = self.roster.openings
        actions: list[Action] = []
        sent: list[int] = []
        for task_id in self._queue:
            idle = not self.limits.binds_at_once and len(self._queue) - len(sent) < self.roster.target
            if not openings.have_room(idle=idle):
                break
            member = openings.choose(self.tasks[task_id].avoid, idle=idle)
            if member is not None:  # else one that has not failed it will have room
                sent.append(task_id)
                actions.append(self._send(self.tasks[task_id], member, now))
        for task_id in sent:
            del self._queue[task_id]
        return actions

    def _send(self, task: Task, member: Member, now: float) -> Action:
        argument = task.argument
        if isinstance(argument, GenerateRequest):
            argument = replace(argument, attempt=task.sent)
        task.sent += 1
        task.sent_at = now if task.sent_at is None else task.sent_at
        send = self.roster.call(member, task.method, argument, now, task_id=task.task_id)
        task.calls.append(send.call.call_id)
        return send

    def _on_answer(self, reply: Reply, held: Held, task_id: int, slot: Slot | None, now: float) -> list[Action]:
        assert reply.stats is not None, "work brings its Stats"
        if held.call_id in self._forgotten:
            self._forgotten.discard(held.call_id)
            return []
        task = self.tasks.get(task_id)
        if task is None:
            return [Duplicate(reply.stats)]
        name = slot.name if slot is not None else ""
        if _judged_nothing(reply.stats) and task.attempts + 1 < self.limits.max_attempts:
            why = reply.stats.unscored[0]
            note = Note("error", name, f"{name} could judge nothing of a chunk: {why.reason}: {why.detail}")
            return [note, *self._blame(task, name or None, ValueError(why.detail), now)]
        del self.tasks[task_id]
        self._queue.pop(task_id, None)  # it may have been queued again, in vain
        queued_s, took_s = max(0.0, held.since - task.queued_at), now - held.since
        self._waited.append(queued_s)
        return [Done(task_id, held.method, self.role, name, reply.payload, reply.stats, queued_s, took_s)]

    def _on_error(
        self, reply: Reply, held: Held, task_id: int, slot: Slot | None, member: Member | None, now: float
    ) -> list[Action]:
        error = reply.error
        assert error is not None, "called for errors only"
        self._forgotten.discard(held.call_id)
        if slot is None or member is None:
            return []  # its work moved when the member was given up
        if reply.cause == "died" or isinstance(error, WeightsMismatchError):
            member.hold(held)  # it goes the way of its other work
            blamed = None if reply.cause == "died" else task_id
            return self.roster.lose(slot, member, held.method, words(error), now, blamed=blamed, error=error)
        slot.last_error = words(error)
        task = self.tasks.get(task_id)
        if task is None:
            return []
        if reply.cause == "lost":
            self.forget(task_id)
            return [Failed(weights_lost(error)) if held.method == "generate" else LostArgument(task_id)]
        note = Note("error", slot.name, f"{member.key} failed in {held.method}: {words(error)}")
        return [note, *self._blame(task, slot.name, error, now)]

    def _absorb(self, actions: list[Action], now: float) -> list[Action]:
        """Take back the work of lost members, and hand out what is queued; the rest is for others to do."""
        passed: list[Action] = []
        for action in actions:
            if isinstance(action, Orphaned):
                passed += self._take_back(action, now)
            else:
                passed.append(action)
        return passed + self.dispatch(now)

    def _take_back(self, orphaned: Orphaned, now: float) -> list[Action]:
        for task_id in reversed(orphaned.task_ids):
            if task_id in self.tasks:
                self._queue_again(self.tasks[task_id], now)
        if orphaned.blamed is None or orphaned.error is None or orphaned.blamed not in self.tasks:
            return []
        return self._blame(self.tasks[orphaned.blamed], None, orphaned.error, now)

    def _blame(self, task: Task, slot: str | None, error: BaseException, now: float) -> list[Action]:
        """The task failed by its own fault, as it seems: try it elsewhere, or give it up."""
        task.attempts += 1
        if slot is not None:
            task.avoid.add(slot)
        if isinstance(error, ConfigError):
            return [Failed(error)]
        if task.attempts >= self.limits.max_attempts:
            return self._close(task, "timeout" if isinstance(error, TimeoutError) else "error", error)
        self._queue_again(task, now)
        return []

    def _close(self, task: Task, reason: Literal["timeout", "error"], error: BaseException) -> list[Action]:
        self.forget(task.task_id)
        return [GaveUp(task.task_id, task.method, reason, error)]

    def _queue_again(self, task: Task, now: float) -> None:
        """To the front, at once."""
        if task.task_id not in self._queue:
            task.queued_at = now
            self._queue[task.task_id] = None
            self._queue.move_to_end(task.task_id, last=False)


def _judged_nothing(stats: Stats) -> bool:
    """Whether a replica had a score for none of its texts: more likely its own fault than that of every text."""
    return stats.samples > 0 and len(stats.unscored) == stats.samples
