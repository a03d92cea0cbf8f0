"""Whether all processes find a place together, against trying every way: labels and GPUs one by one included."""

import itertools

from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.preflight.packing import Demand, NodeFacts, left_out

ZONES = ("a", "b")
SELECTORS = st.sampled_from([{}, {"zone": "a"}, {"zone": "!a"}, {"zone": "in(a,b)"}, {"zone": "!in(a, b)"}])


def node(cpus, gpus, zone, *, gpus_free=None):
    total = {"CPU": float(cpus), "GPU": float(gpus)}
    free = total | {"GPU": total["GPU"] if gpus_free is None else gpus_free}
    return NodeFacts("ab" * 28, "10.0.0.1", total, free, labels={"zone": zone} if zone else {})


def lies_on(selector, zone):
    """By hand, for the five selectors above."""
    return {"": True, "a": zone == "a", "!a": zone != "a", "in(a,b)": zone in ZONES, "!in(a, b)": zone not in ZONES}[
        selector.get("zone", "")
    ]


def fits_on_gpus(asked, devices):
    """Parts lie on one GPU each, whole ones have theirs alone; every way is tried."""
    whole = sum(int(gpus) for gpus in asked if gpus >= 1)
    parts = [gpus for gpus in asked if 0 < gpus < 1]
    if whole > devices:
        return False
    places = itertools.product(range(devices - whole), repeat=len(parts))
    return not parts or any(
        all(sum(part for part, place in zip(parts, way, strict=True) if place == d) <= 1 + 1e-6 for d in set(way))
        for way in places
    )


def fits_somehow(processes, nodes):
    """Every way to lay processes (CPUs, GPUs, selector) out on nodes (CPUs, GPUs, zone), tried one by one."""

    def works(way):
        for number, (cpus, gpus, zone) in enumerate(nodes):
            here = [process for process, place in zip(processes, way, strict=True) if place == number]
            if not all(lies_on(selector, zone) for _, _, selector in here):
                return False
            if sum(process[0] for process in here) > cpus or not fits_on_gpus([process[1] for process in here], gpus):
                return False
        return True

    return any(map(works, itertools.product(range(len(nodes)), repeat=len(processes))))


ROLES = st.tuples(st.integers(1, 3), st.sampled_from([0, 0.3, 0.5, 0.6, 1, 2]), SELECTORS)
NODES = st.tuples(st.integers(0, 6), st.integers(0, 3), st.sampled_from(["a", "b", None]))


@settings(max_examples=200)
@given(
    roles=st.tuples(ROLES, ROLES, ROLES),
    numbers=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    nodes=st.lists(NODES, min_size=1, max_size=3),
)
def test_labels_and_gpus_agree_with_trying_every_way(roles, numbers, nodes):
    names, counts = ("rollout", "reward_service", "learner"), (*numbers, 1)
    asked = [
        Demand(name, {"CPU": cpus} | ({"GPU": gpus} if gpus else {}), count, selector=selector)
        for name, count, (cpus, gpus, selector) in zip(names, counts, roles, strict=True)
    ]
    every = [role for role, count in zip(roles, counts, strict=True) for _ in range(count)]
    said = left_out(asked, [node(*one) for one in nodes])
    assert (said == "") == fits_somehow(every, nodes), said


def asks(gpus, workers):
    return [
        Demand("rollout", {"CPU": 0.1, "GPU": gpus}, workers),
        Demand("reward_service", {"CPU": 0.1}, 1),
        Demand("learner", {"CPU": 0.1}, 1),
    ]


def test_a_process_cannot_have_half_of_two_gpus():
    assert "1 of 3 rollout workers find no place" in left_out(asks(0.6, 3), [node(8, 2, None)])
    assert not left_out(asks(0.6, 2), [node(8, 2, None)])
    assert not left_out(asks(0.5, 4), [node(8, 2, None)])


def test_a_whole_gpu_is_one_that_nobody_has_a_part_of():
    """Three times 0.6 lie on three GPUs: of four, one is whole, though 2.2 are free in sum."""
    asked = [*asks(0.6, 3)[:1], Demand("reward_service", {"CPU": 0.1, "GPU": 1}, 1), *asks(0.6, 3)[2:]]
    assert left_out(asked, [node(8, 3, None)])
    assert not left_out(asked, [node(8, 4, None)])


def test_where_others_hold_a_part_the_sum_is_all_that_is_known():
    """1.2 of 2 GPUs may be 0.6 and 0.6: what may fit is not refused."""
    assert not left_out(asks(0.6, 2), [node(8, 2, None, gpus_free=1.2)])
    assert left_out(asks(0.6, 3), [node(8, 2, None, gpus_free=1.2)])
