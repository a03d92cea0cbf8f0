"""Which members of a pool have room for work, the least loaded first. Finding one takes the same time in a pool of two
and of a thousand.

Kept by common/roster.py, which tells of every change; asked by common/pool.py. Decides nothing else.
"""

from collections.abc import Set

from common.member import Member
from common.ports import MemberKey


class Openings:
    """Active members by the work that they hold.

    Args:
        depth: calls that a member holds at once.
    """

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._by_load: dict[int, dict[MemberKey, Member]] = {}
        """Those with room, by load, where there are any; of like load, who came to it first is first."""
        self._loads: dict[MemberKey, int] = {}
        """Of all that are active."""
        self._active: dict[str, MemberKey] = {}
        """By slot."""

    @property
    def num_active(self) -> int:
        """Members that take work, with room or without."""
        return len(self._loads)

    def look(self, member: Member) -> None:
        """A member may have come, got or done work, or be about to leave."""
        key, load = member.key, member.load()
        if member.state != "active":
            self.close(member)
        elif self._loads.get(key) != load:
            self.close(member)
            self._loads[key] = load
            self._active[key.slot] = key
            if load < self._depth:
                self._by_load.setdefault(load, {})[key] = member

    def close(self, member: Member) -> None:
        """A member takes no more work."""
        load = self._loads.pop(member.key, None)
        if load is None:
            return
        del self._active[member.key.slot]
        if load < self._depth:
            del self._by_load[load][member.key]
            if not self._by_load[load]:
                del self._by_load[load]

    def have_room(self, *, idle: bool) -> bool:
        """Whether any member takes a call; `idle`: one that is at nothing."""
        return 0 in self._by_load if idle else bool(self._by_load)

    def choose(self, avoid: Set[str], *, idle: bool) -> Member | None:
        """The least loaded member that a task may go to.

        Args:
            avoid: slots on which it failed.
            idle: only to one that is at nothing.

        Returns:
            None where it waits for one on which it has not failed, or none has room.
        """
        with_room = [self._by_load[load] for load in sorted(self._by_load) if load == 0 or not idle]
        for members in with_room:
            for key, member in members.items():
                if key.slot not in avoid:
                    return member
        if sum(slot in self._active for slot in avoid) < len(self._loads):
            return None
        return next((member for members in with_room for member in members.values()), None)
