"""Labels and strategy decide on which node processes are, also those that come after one that died; and the preflight
says of the live cluster what fits, what does not, and which labels there are.
"""

import subprocess
import sys

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

ON_SPOT = "reward_service.label_selector={market-type='in(spot, cheap)'}"
SETTINGS = (
    ON_SPOT,
    "reward_service.resources={roll=1}",
    "reward_service.replicas=2",
    "learner.label_selector={market-type='!spot'}",
    "rollout.strategy=spread",
    "ppo.updates=100000",
    "ppo.checkpoint_every=0",
)


def preflight(machines, *changes):
    """What `minichatgpt preflight` says on the head, and its exit code."""
    sets = [word for change in changes for word in ("--set", change)]
    where = ["--address", f"{machines.head.address}:6379", "--runs", str(machines.folder)]
    words = [sys.executable, "-m", "deploy", "preflight", "tiny", *where, *sets]
    asked = machines.head.inside(*words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    said, _ = asked.communicate(timeout=300)
    print(said)
    return said, asked.returncode


def nodes_of(watched, role):
    return [member.node for member in watched.status().pools[role].members]


def test_labels_and_strategy_place_processes_and_those_that_follow_them(machines, seen):
    # Ray as it is by default: it fills the driver's node up to a half before it takes another
    machines.head.environment.pop("RAY_scheduler_spread_threshold")
    machines.start_head('{"head": 2, "roll": 8}', "--labels", "market-type=on-demand")
    machines.start_other('{"roll": 8}', "--labels", "market-type=spot,region=eu")

    selectors = ("rollout.label_selector={market-type='sport'}", "learner.label_selector={market-type='on-demand'}")
    said, code = preflight(machines, *selectors, "learner.num_cpus=4")
    assert code == 1
    assert "rollout needs num_cpus=0.5 on one node with market-type=sport; none of 2 has these labels" in said
    assert "on-demand on 1" in said
    assert "spot on 1" in said
    assert "with market-type=on-demand; none of the 1 with these labels has it" in said
    assert "Without these labels it would fit 1 more" in said
    said, code = preflight(machines, "learner.label_selector={region='us'}", "cluster.autoscaling=true")
    assert code == 0
    assert "tiny can start, with 2 cautions" in said

    watched = seen(machines.run(*SETTINGS))
    watched.await_status(lambda s: all(pool.active == pool.target for pool in s.pools.values()), "all have a node")
    title = f"/proc/{watched.status().learner.pid}/cmdline"
    assert machines.head.inside("grep", "-q", "LearnerActor", title).wait(timeout=60) == 0, "the learner is on the head"
    (spot,) = set(nodes_of(watched, "reward"))
    workers = set(nodes_of(watched, "rollout"))
    assert len(workers) == 2, "spread"
    assert spot in workers

    first = watched.status().pools["reward"].members[0]
    machines.other.inside("kill", "-KILL", str(first.pid)).wait(timeout=60)
    watched.await_status(
        lambda s: (m := watched.member(s, first.slot)).restarts == 1 and m.state == "active", "its successor"
    )
    assert set(nodes_of(watched, "reward")) == {spot}, "its predecessor's node is avoided, but no other has the labels"
    watched.controls.stop()
