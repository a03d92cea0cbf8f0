"""Labels that no node has are told with those that nodes have; on a cluster that grows, what may still come is no
refusal.
"""

import math

import pytest

from deploy.preflight.growth import Growth, NodeGroup
from deploy.preflight.packing import NodeFacts
from deploy.preflight.placements import check_placements
from deploy.preflight.preflight import examine, raise_failures
from deploy.preflight.runtime_facts import RuntimeFacts

SPOT = 'rollout.label_selector={market-type = "spot"}'
GROWS = "cluster.autoscaling=true"


def node(cpus=8.0, *, free=None, draining=False, gpus=0.0, **labels):
    total = {"CPU": cpus, "GPU": gpus}
    left = {"CPU": cpus if free is None else free, "GPU": gpus}
    named = {key.replace("_", "-"): value for key, value in labels.items()} | {"ray.io/node-id": "f0" * 28}
    return NodeFacts("f00dcafe" * 7, "10.0.0.1", total, left, is_draining=draining, labels=named)


def found(config, *nodes, growth=None):
    return check_placements(config, nodes, growth)


def failures(config, *nodes, growth=None):
    return [finding.failure for finding in found(config, *nodes, growth=growth) if finding.failure]


def cautions(config, *nodes, growth=None):
    assert not failures(config, *nodes, growth=growth)
    return [finding.caution for finding in found(config, *nodes, growth=growth) if finding.caution]


def test_labels_that_no_node_has_are_told_with_what_they_are_there(tiny):
    nodes = [node(market_type="on-demand"), node(market_type="on-demand"), node()]
    (failure,) = failures(tiny(SPOT), *nodes)
    assert failure.startswith(
        "rollout needs num_cpus=0.5 on one node with market-type=spot; none of 3 has these labels: market-type is "
        "on-demand on 2, not set on 1. Change rollout.label_selector, or add a node with them."
    )
    assert failure.count("market-type is on-demand") == 3
    assert "10.0.0.1 (f00dcafe): CPU needed 0.5, free 8 of 8; market-type is not set" in failure


def test_a_label_with_another_name_is_seen_among_those_that_nodes_have(tiny):
    asks = tiny('learner.label_selector={"accelerator-type" = "H100"}')
    there = NodeFacts("ab" * 28, "10.0.0.1", {"CPU": 8}, {"CPU": 8}, labels={"ray.io/accelerator-type": "H100"})
    (failure,) = failures(asks, there)
    assert "accelerator-type is not set on 1. The labels that nodes have: ray.io/accelerator-type." in failure


def test_what_the_labelled_nodes_lack_is_told_and_where_it_would_be(tiny):
    asks = tiny(SPOT, "rollout.num_cpus=16")
    (failure,) = failures(asks, node(8, market_type="spot"), node(64))
    assert "num_cpus=16 on one node with market-type=spot; none of the 1 with these labels has it" in failure
    assert "Lower rollout.num_cpus" in failure
    assert "Without these labels it would fit 1 more: see rollout.label_selector." in failure
    assert failure.index("free 8 of 8") < failure.index("free 64 of 64"), "those with the labels come first"


def test_labelled_nodes_that_others_hold_or_that_drain_do_not_count(tiny):
    (failure,) = failures(tiny(SPOT), node(8, free=0, market_type="spot"), node(8))
    assert "others hold what it needs" in failure
    (failure,) = failures(tiny(SPOT), node(market_type="spot", draining=True), node())
    assert "none of 1 has these labels" in failure
    assert "(f00dcafe, draining)" in failure


def test_labels_that_keep_roles_apart_may_leave_some_out(tiny):
    asks = tiny(SPOT, "rollout.workers=3", "rollout.num_cpus=4")
    (failure,) = failures(asks, node(8, market_type="spot"), node(64))
    assert "it lies in pieces, and labels keep roles apart: 1 of 3 rollout workers find no place" in failure
    assert not failures(asks, node(12, market_type="spot"), node(64))


def test_what_a_node_to_come_may_hold_is_a_caution(tiny):
    asks = (SPOT, GROWS)
    (caution,) = cautions(tiny(*asks), node())
    assert "none of 1 has these labels" in caution
    assert "it is left to the autoscaler (cluster.autoscaling), and Ray does not tell what it may add." in caution
    assert "to come" not in caution
    (caution,) = cautions(tiny("rollout.workers=99", GROWS), node())
    assert "all roles together need 50.5 CPU" in caution
    assert not cautions(tiny(GROWS), node())


def test_a_cluster_without_nodes_may_still_grow(tiny):
    assert len(cautions(tiny(GROWS))) == 3


def test_who_would_give_up_before_a_node_comes_is_warned(tiny):
    (caution,) = cautions(tiny(SPOT, "rollout.room_timeout_s=60", "learner.room_timeout_s=60", GROWS), node())
    assert "A node may take 300 s to come: raise rollout.room_timeout_s=60 to that or more." in caution
    (caution,) = cautions(
        tiny("learner.num_gpus=1", "learner.room_timeout_s=60", "learner.stage_timeout_s=9", GROWS), node()
    )
    assert "raise learner.room_timeout_s=60 and learner.stage_timeout_s=9 to" in caution


GPU_NODES = NodeGroup("gpu", {"CPU": 16.0, "GPU": 1.0}, 3)


def test_what_the_autoscaler_can_never_add_is_refused(tiny):
    growth = Growth((GPU_NODES,), {})
    (failure,) = failures(tiny("learner.num_gpus=2", GROWS), node(), growth=growth)
    assert "And the autoscaler has no node for it either (gpu: CPU 16, GPU 1)." in failure.splitlines()[0]
    (caution,) = cautions(tiny("learner.num_gpus=1", GROWS), node(), growth=growth)
    assert "and it may add one." in caution
    (caution,) = cautions(tiny("learner.memory_bytes=8000000000", GROWS), node(), growth=growth)
    assert "memory_bytes" in caution, "Ray does not know the memory of nodes to come"


@pytest.mark.parametrize(("most", "limits"), [(3, {}), (9, {"CPU": 48.0})])
def test_more_than_all_nodes_that_it_may_add_is_refused(tiny, most, limits):
    growth = Growth((NodeGroup("cpu", {"CPU": 16.0}, most),), limits)
    (failure,) = failures(tiny("rollout.workers=96", GROWS), node(), growth=growth)
    assert "And the autoscaler adds up to 48 CPU and no more." in failure
    assert cautions(tiny("rollout.workers=90", GROWS), node(), growth=growth)


def test_no_limit_is_no_limit(tiny):
    growth = Growth((NodeGroup("cpu", {"CPU": 16.0}, math.inf),), {})
    assert cautions(tiny("rollout.workers=9000", GROWS), node(), growth=growth)


def test_storage_on_nodes_to_come_is_a_caution_and_the_run_may_start(tiny, tmp_path):
    config = tiny(SPOT, GROWS)
    all_found = examine(config, tmp_path, RuntimeFacts((), growth=None))
    raise_failures(config, all_found)
    by_check = {finding.check: finding for finding in all_found}
    assert "none of them is for rollout, reward_service, learner" in by_check["nodes to come"].caution


def test_an_autoscaler_that_may_ask_for_more_than_there_is_room_for_is_a_caution(tiny):
    bounds = ("autoscaler.enabled=true", "autoscaler.max_workers=64")
    (caution,) = cautions(tiny(*bounds), node(4))
    assert caution.startswith("autoscaler.max_workers=64 is more than the cluster has room for")
    assert not cautions(tiny(*bounds), node(64))
    assert not cautions(tiny("autoscaler.max_workers=64"), node(4)), "it is off"
