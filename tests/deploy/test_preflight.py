"""What does not fit the cluster is said before anything starts: what is needed, what is there, what to change."""

from typing import Any

import pytest

from common.errors import ConfigError
from deploy.preflight import check_placements


def node(cpus: float, gpus: float = 0.0, *, alive: bool = True) -> dict[str, Any]:
    resources = {"CPU": cpus, "GPU": gpus, "memory": 1e9}
    return {"Alive": alive, "Resources": {k: v for k, v in resources.items() if v}}


def test_what_fits_passes(tiny):
    check_placements(tiny(), [node(2)])


def test_exactly_enough_is_enough(tiny):
    changes = [f"{role}.num_cpus=0.1" for role in ("rollout", "reward_service", "learner")]
    assert 0.1 + 0.1 + 0.1 > 0.3
    check_placements(tiny("rollout.workers=1", *changes), [node(0.3)])


@pytest.mark.parametrize("role", ["rollout", "reward_service", "learner"])
def test_a_role_too_big_for_any_node_is_named(tiny, role):
    with pytest.raises(ConfigError) as raised:
        check_placements(tiny(f"{role}.num_cpus=6"), [node(4), node(4), node(2)])
    assert f"{role} needs num_cpus=6 and num_gpus=0 on one node" in str(raised.value)
    assert "the largest of 3 nodes have CPU=4 and GPU=0" in str(raised.value)
    assert f"lower {role}.num_cpus or num_gpus, or add a node" in str(raised.value)


def test_cpus_and_gpus_must_be_on_the_same_node(tiny):
    asks = tiny("learner.num_cpus=4", "learner.num_gpus=1")
    with pytest.raises(ConfigError, match="learner needs num_cpus=4 and num_gpus=1 on one node"):
        check_placements(asks, [node(8), node(1, gpus=2)])
    check_placements(asks, [node(8), node(4, gpus=1)])


def test_all_roles_together_must_fit(tiny):
    with pytest.raises(ConfigError) as raised:
        check_placements(tiny("rollout.workers=10"), [node(2), node(2)])
    assert "all roles together need 6 CPU, the cluster has 4" in str(raised.value)
    assert "lower rollout.workers" in str(raised.value)


def test_gpus_are_added_up_too(tiny):
    with pytest.raises(ConfigError, match=r"all roles together need 1\.5 GPU, the cluster has 1"):
        check_placements(tiny("rollout.num_gpus=0.5", "learner.num_gpus=0.5"), [node(8, gpus=1)])


def test_dead_nodes_do_not_count(tiny):
    with pytest.raises(ConfigError, match=r"the largest of 1 nodes have CPU=0\.25"):
        check_placements(tiny(), [node(64, alive=False), node(0.25)])


def test_a_cluster_without_nodes_is_said(tiny):
    with pytest.raises(ConfigError, match="the largest of 0 nodes have CPU=0"):
        check_placements(tiny(), [])
