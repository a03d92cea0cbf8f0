"""A pool of members that answer calls: who gets which call, and what came of it. Pure; knows no Ray and no clock.

Both the rollout pool and the reward pool are this machine; `deploy/conductor.py` moves calls and replies between it
and a transport.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from common.errors import MemberFailedError, MiniChatGPTError, PhaseTimeoutError
from common.ports import Call, Method, Reply, Role
from common.supervision import Dispatcher

DEPTH = 2
"""Calls that a member holds at once: one being worked on, one waiting, so that it never idles between them."""


class Pool:
    """Members of one role.

    Args:
        role: for messages, and so that the transport finds the members.
        members: their names.
        deadline_s: longest time that a call may take, waiting at the member included.
        call_ids: one iterator for all pools of a run, so that ids never meet.
    """

    def __init__(
        self, role: Role, members: Sequence[str], *, deadline_s: float, call_ids: Iterator[int] | None = None
    ) -> None:
        self.role = role
        self._ids = call_ids if call_ids is not None else itertools.count()
        self._dispatcher = Dispatcher(members, depth=DEPTH, deadline_s=deadline_s)
        self._work: dict[int, tuple[Method, Any]] = {}

    @property
    def members(self) -> list[str]:
        """Names of the members."""
        return self._dispatcher.members

    def submit(self, method: Method, argument: Any) -> int:
        """Queue work; returns the call's id, under which its reply will come."""
        call_id = next(self._ids)
        self._work[call_id] = (method, argument)
        self._dispatcher.submit(call_id)
        return call_id

    def due(self, now: float) -> list[Call]:
        """Calls to send now."""
        calls = []
        for assignment in self._dispatcher.assign(now):
            assert isinstance(assignment.task, int)
            method, argument = self._work[assignment.task]
            calls.append(Call(assignment.task, self.role, assignment.member, method, argument))
        return calls

    def owns(self, reply: Reply) -> bool:
        """Whether the reply answers a call of this pool that is still open."""
        return reply.call_id in self._work

    def settle(self, reply: Reply) -> str:
        """Close a call; returns the member that answered it.

        Raises:
            MemberFailedError: the call failed; names role, member, phase and cause.
        """
        member = self._dispatcher.finish(reply.call_id)
        assert member is not None, "a reply is settled once"
        method, _ = self._work.pop(reply.call_id)
        if isinstance(reply.error, MiniChatGPTError):
            raise reply.error
        if reply.error is not None:
            raise MemberFailedError(
                f"{self.role} member {member} failed in {method}: {type(reply.error).__name__}: {reply.error}"
            ) from reply.error
        return member

    def check_deadlines(self, now: float) -> None:
        """Raise PhaseTimeoutError if a call is late; names who holds it and what else is open."""
        for late in self._dispatcher.late(now):
            assert isinstance(late.task, int)
            method, _ = self._work[late.task]
            raise PhaseTimeoutError(
                f"{self.role} member {late.member} has not answered {method} for {late.held_s:.0f} s "
                f"(limit {self._dispatcher.deadline_s:.0f} s, rollout.request_timeout_s); "
                f"{self._dispatcher.num_held()} calls at {len(self.members)} members, "
                f"{len(self._dispatcher.queue)} queued"
            )
