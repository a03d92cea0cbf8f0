"""The environment of processes on Ray, by what they do. No cluster."""

import pytest

from common.placement_config import Placement, RewardServiceConfig, RolloutConfig
from deploy.on_ray.calls import options


def environment(placement):
    return options(placement)["runtime_env"]["env_vars"]


def test_a_process_that_trains_on_cpus_has_one_heap(monkeypatch):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    assert environment(Placement())["MALLOC_ARENA_MAX"] == "1"
    monkeypatch.setenv("MALLOC_ARENA_MAX", "4")
    assert "MALLOC_ARENA_MAX" not in environment(Placement()), "the user's own holds"


@pytest.mark.parametrize("placement", [RolloutConfig(), RewardServiceConfig(), Placement(num_gpus=1)])
def test_other_processes_have_as_many_as_the_c_library_likes(monkeypatch, placement):
    monkeypatch.delenv("MALLOC_ARENA_MAX", raising=False)
    assert "MALLOC_ARENA_MAX" not in environment(placement)
