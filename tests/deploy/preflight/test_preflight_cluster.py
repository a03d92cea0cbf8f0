"""What does not fit the cluster is said before anything starts: what is needed, what is free, what to change."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.preflight.packing import Demand, NodeFacts, left_out
from deploy.preflight.placements import check_placements

ROLES = ("rollout", "reward_service", "learner")


def node(cpus, gpus=0.0, *, free=None, memory=1e12, draining=False, **resources):
    """A node with `free` CPUs left, all by default."""
    total = {"CPU": cpus, "GPU": gpus, "memory": memory} | resources
    total = {name: number for name, number in total.items() if number}
    left = total if free is None else total | {"CPU": free}
    return NodeFacts("f00dcafe" * 7, "10.0.0.1", total, left, is_draining=draining)


def failures(config, *nodes):
    return [finding.failure for finding in check_placements(config, nodes) if finding.failure]


def test_what_fits_passes_and_says_what_was_measured(tiny):
    found = check_placements(tiny(), [node(2)])
    assert [f.failure for f in found] == [""] * 4
    assert [f.check for f in found] == [*(f"{role} on a node" for role in ROLES), "all roles together"]
    assert "needs num_cpus=0.5; free on 1 of 1 nodes" in found[0].measured
    assert found[-1].measured == "CPU needed 2, free 2"


def test_exactly_enough_is_enough(tiny):
    changes = [f"{role}.num_cpus=0.1" for role in ROLES]
    assert 0.1 + 0.1 + 0.1 > 0.3
    assert not failures(tiny("rollout.workers=1", *changes), node(0.3))


@pytest.mark.parametrize("role", ROLES)
def test_a_role_too_big_for_any_node_is_named_with_a_line_per_node(tiny, role):
    (failure,) = failures(tiny(f"{role}.num_cpus=6"), node(4), node(4, free=1), node(2))
    assert f"{role} needs num_cpus=6 on one node; none of 3 has it" in failure
    assert f"Lower {role}.num_cpus, or add a node." in failure
    assert "10.0.0.1 (f00dcafe): CPU needed 6, free 1 of 4" in failure
    assert failure.count("CPU needed 6") == 3


def test_every_role_that_does_not_fit_is_told(tiny):
    found = failures(tiny(*(f"{role}.num_cpus=6" for role in ROLES)), node(4))
    assert [failure.split()[0] for failure in found] == list(ROLES)


def test_cpus_and_gpus_must_be_on_the_same_node(tiny):
    asks = tiny("learner.num_cpus=4", "learner.num_gpus=1")
    (failure,) = failures(asks, node(8), node(1, gpus=2))
    assert "learner needs num_cpus=4 and num_gpus=1 on one node" in failure
    assert "Lower learner.num_cpus or learner.num_gpus" in failure
    assert not failures(asks, node(8), node(4, gpus=1))


def test_only_what_is_too_much_shall_be_lowered(tiny):
    (failure,) = failures(tiny("learner.num_gpus=1"), node(8))
    assert "Lower learner.num_gpus, or add a node" in failure


def test_memory_is_compared_and_shown_in_units(tiny):
    (failure,) = failures(tiny("learner.memory_bytes=8000000000"), node(8, memory=4.5e9))
    assert "memory_bytes=8 GB" in failure
    assert "memory needed 8 GB, free 4.5 GB of 4.5 GB" in failure
    assert not failures(tiny("learner.memory_bytes=8000000000"), node(8, memory=9e9))


def test_custom_resources_are_looked_for(tiny):
    asks = tiny("rollout.resources={spot = 1}", "rollout.workers=1")
    (failure,) = failures(asks, node(8))
    assert "resources.spot=1 on one node" in failure
    assert "Lower rollout.resources.spot" in failure
    assert not failures(asks, node(8, spot=1))


def test_what_others_hold_is_not_free(tiny):
    (failure,) = failures(tiny("learner.num_cpus=4"), node(8, free=3))
    assert "others hold what it needs" in failure
    assert "CPU needed 4, free 3 of 8" in failure


def test_all_roles_together_must_fit(tiny):
    (failure,) = failures(tiny("rollout.workers=10"), node(2), node(2))
    assert "all roles together need 6 CPU; the cluster has 4 CPU free" in failure
    assert "Lower rollout.workers" in failure


def test_gpus_are_added_up_too(tiny):
    (failure,) = failures(tiny("rollout.num_gpus=0.5", "learner.num_gpus=0.5"), node(8, gpus=1))
    assert "all roles together need 1.5 GPU; the cluster has 1 GPU free" in failure


def test_enough_in_sum_but_in_pieces_is_told(tiny):
    asks = tiny("rollout.workers=2", *(f"{role}.num_cpus=2" for role in ROLES))
    (failure,) = failures(asks, node(3), node(5))
    assert "it lies in pieces: 1 of 2 rollout workers find no place" in failure
    assert not failures(asks, node(4), node(4))


def test_a_draining_node_does_not_count_and_is_marked(tiny):
    (failure,) = failures(tiny("learner.num_cpus=4"), node(64, draining=True), node(2))
    assert "none of 1 has it" in failure
    assert "(f00dcafe, draining): CPU needed 4, free 64 of 64" in failure


def test_a_cluster_without_nodes_is_said(tiny):
    assert "none of 0 has it" in failures(tiny())[0]


def test_without_ppo_only_the_learner_needs_a_place(tiny):
    config = tiny("rollout.num_cpus=100").model_copy(update={"ppo": None, "evaluate": None})
    assert not failures(config, node(1))


def test_many_nodes_are_not_all_listed(tiny):
    (failure,) = failures(tiny("learner.num_cpus=6"), *(node(4) for _ in range(40)))
    assert failure.count("CPU needed") == 16
    assert "… and 24 more" in failure


def fits_somehow(sizes, nodes):
    """Every way to lay processes of these sizes out, tried one by one."""
    places = itertools.product(range(len(nodes)), repeat=len(sizes))
    return any(
        all(sum(s for s, p in zip(sizes, way, strict=True) if p == n) <= room for n, room in enumerate(nodes))
        for way in places
    )


@given(
    sizes=st.tuples(*[st.integers(1, 4)] * 3),
    numbers=st.tuples(st.integers(1, 3), st.integers(1, 2)),
    nodes=st.lists(st.integers(0, 6), min_size=1, max_size=3),
)
def test_whether_all_find_a_place_agrees_with_trying_every_way(sizes, numbers, nodes):
    worker, replica, learner = ({"CPU": float(size)} for size in sizes)
    asked = [Demand("rollout", worker, numbers[0]), Demand("reward_service", replica, numbers[1])]
    said = left_out([*asked, Demand("learner", learner, 1)], [node(float(room)) for room in nodes])
    every = [sizes[0]] * numbers[0] + [sizes[1]] * numbers[1] + [sizes[2]]
    assert (said == "") == fits_somehow(every, nodes)
