"""Who has room, kept up to date change by change, against looking at everybody."""

from hypothesis import given
from hypothesis import strategies as st

from common.member import Held, Member
from common.openings import Openings
from common.ports import MemberKey

DEPTH, MEMBERS = 3, 4
STEPS = st.lists(
    st.tuples(st.integers(0, MEMBERS - 1), st.sampled_from(["call", "answer", "active", "draining", "gone"])),
    max_size=40,
)


def changed(member, change, call_ids):
    match change:
        case "call":
            member.hold(Held(next(call_ids), "generate", 1, 0.0))
        case "answer":
            member.let_go(next(iter(member.work), -1))
        case "active" | "draining":
            member.enter(change, 0.0)


def chosen(there, avoid, *, idle):
    """By the definition; None, or the loads of those among which it may choose, and their slots."""
    active = [member for member in there if member.state == "active"]
    free = [member for member in active if member.load() < (1 if idle else DEPTH)]
    untried = [member for member in free if member.key.slot not in avoid]
    if not untried and any(member.key.slot not in avoid for member in active):
        return set()
    among = untried or free
    least = min((member.load() for member in among), default=0)
    return {member.key.slot for member in among if member.load() == least}


@given(steps=STEPS, avoid=st.sets(st.sampled_from([f"worker-{i}" for i in range(MEMBERS)]), max_size=3))
def test_the_least_loaded_member_is_found_as_by_looking_at_everybody(steps, avoid):
    openings, call_ids = Openings(DEPTH), iter(range(1000))
    members = [Member(MemberKey("rollout", f"worker-{i}", 0), 0.0) for i in range(MEMBERS)]
    gone = set()
    for index, change in steps:
        member = members[index]
        changed(member, change, call_ids)
        if change == "gone":
            gone.add(index)
            openings.close(member)
        elif index not in gone:
            openings.look(member)
        there = [member for i, member in enumerate(members) if i not in gone]
        active = [member for member in there if member.state == "active"]
        assert openings.num_active == len(active)
        for idle in (True, False):
            limit = 1 if idle else DEPTH
            assert openings.have_room(idle=idle) == any(member.load() < limit for member in active)
            found = openings.choose(avoid, idle=idle)
            allowed = chosen(there, avoid, idle=idle)
            assert (found is None) == (not allowed)
            assert found is None or found.key.slot in allowed


def test_of_like_load_who_came_to_it_first_is_first():
    openings = Openings(2)
    first, second = (Member(MemberKey("reward", f"replica-{i}", 0), 0.0, state="active") for i in range(2))
    openings.look(second)
    openings.look(first)
    openings.look(second)  # as after a heartbeat: nothing has changed
    assert openings.choose(frozenset(), idle=True) is second
