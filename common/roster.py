"""Who is in a pool: members start, come in step, are watched, are lost and replaced, drain and go. A pure machine.

    resize ─▶ Start, room, ready ─▶ adopt | probe ─▶ active ──scaled down──▶ draining ─▶ gone
                 ▲                                    │
                 └──── pause ◀── budget ◀── died, hung, silent: what it held is Orphaned

What members work at is the pool's business (common/pool.py); here it is only a number of calls with a deadline.
"""

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from common.errors import ConfigError, DataError, MemberFailedError, WeightsMismatchError
from common.member import Held, Member, Slot
from common.openings import Openings
from common.pool_actions import Action, Counted, Departed, Failed, Kill, Note, Orphaned, Send, Start
from common.ports import Call, MemberKey, Method, Reply, Role
from common.reasons import differs, weights_lost, words
from common.records import Identity
from common.supervision import Limits, RestartBudget

BEATS_PER_S = 50.0
"""Heartbeats that a pool asks for in a second, about, up to where their distance reaches half of their deadline (1,000
members at 20 s): asking costs the driver as much as handing out work."""
SLOT = {"rollout": "worker", "reward": "replica"}


class Roster:
    """The members of one role.

    Args:
        role: decides what a new member does before its first work: `adopt` the weights, or answer a `probe`.
        limits: deadlines and restarts.
        call_ids: one iterator for all pools of a run, so that ids never meet.
    """

    def __init__(self, role: Role, limits: Limits, call_ids: Iterator[int]) -> None:
        self.role = role
        self.limits = limits
        self.target = 0
        self.slots: dict[str, Slot] = {}
        self.calls: dict[int, tuple[MemberKey, Held]] = {}
        """Calls that were sent and not answered, those of lost members included."""
        self.openings = Openings(limits.depth)
        """Active members that have room for work."""
        self._ids = call_ids
        self._lives: Counter[str] = Counter()
        """Lives that began under a name: never counted anew, so that late replies find the life that they are of."""
        self._weights: Any = None
        self._probe: dict[str, float] | None = None

    def members(self) -> list[Member]:
        """All that live, in the order of their slots."""
        return [slot.member for slot in self.slots.values() if slot.member is not None]

    def active(self) -> list[Member]:
        """Those that take work."""
        return [member for member in self.members() if member.state == "active"]

    # --- what others want

    def resize(self, target: int, now: float) -> list[Action]:
        """Have `target` members: start new ones, or let the last ones finish and go; given-up slots start afresh."""
        is_changed = self.target not in (0, target)
        self.target = target
        actions: list[Action] = [Counted(self.role, "resizes")] if is_changed else []
        for slot in [s for s in self.slots.values() if s.given_up]:
            actions += self._remove(slot)
        staying = [s for s in self.slots.values() if not s.is_leaving]
        staying.sort(key=lambda s: (s.member is not None and s.member.state == "active", -s.index))
        excess = max(0, len(staying) - target)
        for slot in staying[:excess]:
            actions += self._let_go(slot, now)
        taken = {slot.index for slot in self.slots.values()}
        free = (i for i in itertools.count() if i not in taken)
        for _ in range(target - len(staying)):  # none where some are let go
            name = f"{SLOT[self.role]}-{next(free)}"
            slot = Slot(name, RestartBudget(self.limits.max_restarts, self.limits.restart_window_s))
            self.slots[name] = slot
            actions += self._begin_life(slot, now)
        return actions

    def publish(self, weights: Any, now: float) -> list[Action]:
        """Weights for members to come; told at once are those that wait for them, or may fetch them beside work."""
        self._weights = weights
        waiting = [m for m in self.members() if m.state == "syncing" and not m.asked]
        ahead = self.active() if self.limits.prefetches else []
        synced = [action for member in waiting for action in self._sync(member, now)]
        return synced + [action for member in ahead for action in self._prefetch(member, now)]

    def _prefetch(self, member: Member, now: float) -> list[Action]:
        """One at a time: where they take longer than updates, they would pile up, and keep their weights alive."""
        member.is_behind = any(held.method == "prefetch" for held in member.asked.values())
        return [] if member.is_behind else [self.call(member, "prefetch", self._weights, now)]

    def leave_nodes(self, nodes: frozenset[str], now: float) -> list[Action]:
        """These nodes are about to go: their members are replaced elsewhere, and no restart is counted."""
        actions: list[Action] = []
        for slot in list(self.slots.values()):
            member = slot.member
            if member is not None and member.node and member.node in nodes:
                actions.append(Note("drain", slot.name, f"{member.key} leaves node {member.node[:8]}: it is draining"))
                actions += self._end_life(slot, member)
                actions += self._remove(slot) if member.state == "draining" else self._begin_life(slot, now)
        return actions

    def place(self, unplaced: Mapping[MemberKey, str], now: float) -> list[Action]:
        """These have no node yet, and why; the time that others have to start counts from when they got one."""
        starting = [member for member in self.members() if member.state == "starting"]
        news = [member for member in starting if member.place(member.key in unplaced, now)]
        for member in starting:
            member.lacks = unplaced.get(member.key, "")
        return [Note("waiting", member.key.slot, f"{member.key} has no node yet: {member.lacks}") for member in news]

    def call(self, member: Member, method: Method, argument: Any, now: float, *, task_id: int | None = None) -> Send:
        """Send a call and remember it."""
        call = Call(next(self._ids), member.key, method, argument)
        held = Held(call.call_id, method, task_id, now)
        self.calls[call.call_id] = (member.key, held)
        if method == "heartbeat":
            member.beat_call, member.beat_sent_at = call.call_id, now
        else:
            member.hold(held)
            self.openings.look(member)
        return Send(call)

    # --- what happens

    def answered(self, reply: Reply, now: float) -> tuple[Held, Slot | None, Member | None]:
        """Whose call this answers; no slot and no member where that life is over."""
        key, held = self.calls.pop(reply.call_id)
        slot = self.slots.get(key.slot)
        if slot is None or slot.member is None or slot.member.key != key:
            return held, None, None
        slot.member.let_go(reply.call_id)
        self.openings.look(slot.member)
        if held.task_id is not None:
            slot.member.worked_until = now
        if reply.error is None:
            slot.member.beat_at = now
            if reply.stats is not None and reply.stats.identity is not None:
                slot.member.weights = reply.stats.identity
        return held, slot, slot.member

    def on_control(self, reply: Reply, held: Held, slot: Slot, member: Member, now: float) -> list[Action]:
        """A call that is no work was answered."""
        if held.method == "prefetch" and reply.cause != "died" and not isinstance(reply.error, WeightsMismatchError):
            # after any other error the request that needs these weights meets the same, and decides
            return self._prefetch(member, now) if member.is_behind and member.state == "active" else []
        if reply.error is not None:
            if isinstance(reply.error, ConfigError | DataError):
                return [Failed(reply.error)]  # another life would meet the same
            if reply.cause == "lost":
                return [Failed(weights_lost(reply.error))]
            phase = "start" if held.method == "ready" else held.method
            return self.lose(slot, member, phase, words(reply.error), now)
        match held.method:
            case "heartbeat":
                member.beat_call = None
                member.last_beat = dict(reply.payload)
                return []
            case "ready":
                member.described = dict(reply.payload)
                member.enter("syncing", now)
                return self._sync(member, now)
            case _:
                return self._admit(slot, member, reply.payload, now)

    def lose(
        self,
        slot: Slot,
        member: Member,
        phase: str,
        wrong: str,
        now: float,
        *,
        dump: bool = False,
        blamed: int | None = None,
        error: BaseException | None = None,
    ) -> list[Action]:
        """A life is over before its time: orphan its work, and begin another life if the budget allows."""
        slot.last_error = f"{phase}: {wrong}"
        slot.lost_on = member.node or slot.lost_on
        told = wrong if member.key.slot in wrong else f"{member.key} was lost in {phase}: {wrong}"
        actions = self._end_life(slot, member, dump=dump, blamed=blamed, error=error)
        if member.state == "draining":
            return [*actions, Note("lost", slot.name, told), *self._remove(slot)]
        pause = slot.budget.take(now, progressed=member.state == "active")
        if pause is None:
            why = (
                f"{member.key} was lost in {phase} ({wrong}) after {slot.budget.max_restarts} restarts within "
                f"{slot.budget.window_s:g} s (max_restarts, restart_window_s)"
            )
            return actions + self._give_up(slot, why)
        later = f" in {pause:g} s" if pause else ""
        actions += [
            Note("restart", slot.name, f"{told.rstrip('.')}. Another starts{later}"),
            Counted(self.role, "restarts"),
        ]
        slot.restart_at = now + pause
        return actions if pause else actions + self._begin_life(slot, now)

    def tick(self, now: float) -> list[Action]:
        """Time has passed: deadlines, heartbeats, pauses that are over."""
        actions: list[Action] = []
        for slot in list(self.slots.values()):
            if slot.member is not None:
                actions += self._check(slot, slot.member, now)
            elif slot.restart_at is not None and slot.restart_at <= now:
                actions += self._begin_life(slot, now)
        return actions

    def leave_if_idle(self, slot: Slot) -> list[Action]:
        """A member that is scaled down goes once it holds no work."""
        if not slot.is_leaving or slot.member is None or slot.member.load():
            return []
        return [*self._end_life(slot, slot.member), *self._remove(slot)]

    # --- lives

    def _begin_life(self, slot: Slot, now: float) -> list[Action]:
        key = MemberKey(self.role, slot.name, self._lives[slot.name])
        self._lives[slot.name] += 1
        slot.restart_at = None
        slot.member = Member(key, now)
        return [Start(key, slot.lost_on), self.call(slot.member, "ready", None, now)]

    def _sync(self, member: Member, now: float) -> list[Action]:
        """What a new member must do before its first work."""
        if self.role == "reward":
            return [self.call(member, "probe", None, now)]
        return [] if self._weights is None else [self.call(member, "adopt", self._weights, now)]

    def _admit(self, slot: Slot, member: Member, answer: Any, now: float) -> list[Action]:
        """A new member is in step with the others: from now on it gets work."""
        if self.role == "reward":
            numbers = dict(answer)
            if self._probe is None:
                self._probe = numbers
            elif wrong := differs(numbers, self._probe):
                return self.lose(slot, member, "probe", wrong, now)
        else:
            member.weights = Identity.of(answer["identity"])
        member.enter("active", now)
        self.openings.look(member)
        where = f" on node {member.node[:8]}" if member.node else ""
        return [Note("active", slot.name, f"{member.key} takes work{where}")]

    def _end_life(
        self,
        slot: Slot,
        member: Member,
        *,
        dump: bool = False,
        blamed: int | None = None,
        error: BaseException | None = None,
    ) -> list[Action]:
        slot.member = None
        self.openings.close(member)
        held = sorted(member.work.values(), key=lambda h: h.call_id)
        tasks = tuple(h.task_id for h in held if h.task_id is not None)
        return [Kill(member.key, dump), Orphaned(tasks, blamed, error)]

    def _let_go(self, slot: Slot, now: float) -> list[Action]:
        """Scale down by one."""
        member = slot.member
        if member is None:
            return self._remove(slot)
        if member.state != "active":
            return [*self._end_life(slot, member), *self._remove(slot)]
        member.enter("draining", now)
        self.openings.look(member)
        note = Note("drain", slot.name, f"{member.key} finishes {member.load()} calls and leaves")
        return [note, *self.leave_if_idle(slot)]

    def _remove(self, slot: Slot) -> list[Action]:
        self.slots.pop(slot.name, None)
        return [Departed(slot.name)]

    def _give_up(self, slot: Slot, why: str) -> list[Action]:
        """No other life begins in this slot."""
        slot.given_up = why
        return [Note("given_up", slot.name, why), *self._check_floor()]

    def _check_floor(self) -> list[Action]:
        """Whether enough members are left, or will come again."""
        left = sum(not slot.given_up and not slot.is_leaving for slot in self.slots.values())
        if left >= self.limits.min_members:
            return []
        why = "; ".join(slot.given_up for slot in self.slots.values() if slot.given_up)
        message = f"the {self.role} pool has {left} members left and needs {self.limits.min_members}: {why}"
        return [Failed(MemberFailedError(message))]

    # --- deadlines

    def _check(self, slot: Slot, member: Member, now: float) -> list[Action]:
        """Deadlines of one member; heartbeats tell whether it is stuck in its work or cut off."""
        limits, age = self.limits, now - member.since
        oldest = member.oldest()
        if member.is_unplaced and age > limits.room_s:
            why = (
                f"{member.key} found no node with room within {limits.room_s:g} s (room_timeout_s): {member.lacks}. "
                "Add nodes, or scale to fewer"
            )
            return [self._late("start"), *self._end_life(slot, member), *self._give_up(slot, why)]
        if member.state == "starting" and not member.is_unplaced and age > limits.start_s:
            wrong = f"not ready within {limits.start_s:g} s (start_timeout_s)"
            return [self._late("start"), *self.lose(slot, member, "start", wrong, now)]
        if member.state == "syncing" and any(now - h.since > limits.sync_s for h in member.asked.values()):
            phase = "probe" if self.role == "reward" else "adopt"
            wrong = f"no answer within {limits.sync_s:g} s (sync_timeout_s)"
            return [self._late(phase), *self.lose(slot, member, phase, wrong, now, dump=True)]
        if member.state == "draining" and age > limits.drain_s:
            note = Note("drain", slot.name, f"{member.key} did not finish within {limits.drain_s:g} s; its work moves")
            return [note, self._late("drain"), *self._end_life(slot, member), *self._remove(slot)]
        if member.beat_call is not None and now - max(member.beat_sent_at, member.beat_at) > limits.heartbeat_s:
            phase = oldest.method if oldest is not None else "idling"
            wrong = f"no sign of life for {now - member.beat_at:.0f} s (limit {limits.heartbeat_s:g} s, "
            return [self._late("heartbeat"), *self.lose(slot, member, phase, wrong + "heartbeat_timeout_s)", now)]
        if oldest is not None and now - oldest.since > limits.request_s:
            wrong = f"no answer for {now - oldest.since:.0f} s (limit {limits.request_s:g} s, request_timeout_s)"
            error = TimeoutError(f"{member.key} in {oldest.method}: {wrong}")
            lost = self.lose(slot, member, oldest.method, wrong, now, dump=True, blamed=oldest.task_id, error=error)
            return [self._late(oldest.method), *lost]
        if self._beat_due(member, now):
            return [self.call(member, "heartbeat", None, now)]
        return []

    def _late(self, phase: str) -> Counted:
        return Counted(self.role, "timeouts", phase)

    def _beat_due(self, member: Member, now: float) -> bool:
        """Answers to work are signs of life too, but a member that is busy with short calls must tell its memory."""
        if member.state == "starting" or member.beat_call is not None or self.limits.heartbeat_s == float("inf"):
            return False
        return now - member.beat_sent_at >= self._beat_every_s()

    def _beat_every_s(self) -> float:
        """In a large pool less often, but so that a member's silence still stands out against its deadline."""
        limits = self.limits
        return max(limits.heartbeat_every_s, min(len(self.slots) / BEATS_PER_S, limits.heartbeat_s / 2))
