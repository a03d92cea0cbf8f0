"""A run on a cluster that grows and shrinks: Ray's own autoscaler, with nodes that it starts on one machine of ours.

`scale` asks for more workers than fit ─▶ they wait for nodes ─▶ the autoscaler adds nodes ─▶ they work
`scale` asks for fewer ─▶ their nodes idle ─▶ the autoscaler takes the nodes away

Ray's fake provider starts a node as processes beside the head's. All else of the autoscaler is what a cloud would meet.
The run pauses while processes start or end, so that it is not over before them, however fast it is.
"""

import sys
import time

import pytest
import yaml

pytestmark = [pytest.mark.ray, pytest.mark.slow]

UPDATES = 40
SETTINGS = (f"ppo.updates={UPDATES}", "ppo.checkpoint_every=10")
ROLES = ("rollout.workers=1", "rollout.num_cpus=1", *(f"{role}.resources={{}}" for role in ("rollout", "learner",
         "reward_service")))  # fmt: skip
"""Learner, replica and one worker fill the head; each node that is added has room for one worker more."""
MOST = 2
"""Nodes that may be added."""
COMMANDS = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
CLUSTER = {
    "cluster_name": "fake",
    "max_workers": MOST,
    "idle_timeout_minutes": 0.1,
    "upscaling_speed": 1.0,
    "provider": {
        "type": "fake_multinode",
        "use_node_id_as_ip": True,  # they share one
        "disable_node_updaters": True,
        "disable_launch_config_check": True,
    },
    "head_node_type": "ray.head.default",
    "available_node_types": {
        "ray.head.default": {"resources": {"CPU": 2}, "node_config": {}, "max_workers": 0},
        "small": {"resources": {"CPU": 1}, "node_config": {}, "min_workers": 0, "max_workers": MOST},
    },
    "auth": {},
    "file_mounts": {},
    "cluster_synced_files": [],
    **{f"{name}_commands": [] for name in COMMANDS},
}
"""What `ray up` would fill in stands here too: `ray start` fills in nothing."""
COUNT = """
import sys, time
import ray
ray.init(address=sys.argv[1], log_to_driver=False)
while True:
    print(sum(node["Alive"] for node in ray.nodes()), flush=True)
    time.sleep(0.5)
"""


@pytest.fixture
def cluster(machines_at, short_folder):
    """One machine with an autoscaler; and says how many nodes Ray has."""
    with machines_at(short_folder) as machines:
        head, config, counts = machines.head, short_folder / "fake.yaml", short_folder / "counts"
        head.environment |= {"RAY_FAKE_CLUSTER": "1", "AUTOSCALER_UPDATE_INTERVAL_S": "1"}
        head.ip("route", "add", "default", "dev", "wire")  # a node that is added takes its address from it
        config.write_text(yaml.safe_dump(CLUSTER), encoding="utf-8")
        machines.start_head("{}", f"--autoscaling-config={config}")
        with counts.open("wb") as file:
            head.inside(sys.executable, "-c", COUNT, f"{head.address}:6379", stdout=file)
        yield machines, lambda: int(["0", *counts.read_text().split()][-1])


def in_state(status, state):
    return [member.slot for member in status.pools["rollout"].members if member.state == state]


def test_scale_beyond_what_fits_adds_nodes_and_scale_down_lets_them_go(cluster, seen, undisturbed, Outcome, poll):
    machines, num_nodes = cluster
    run = machines.run(*SETTINGS, *ROLES, is_calm=True)
    watched = seen(run)
    assert poll(num_nodes, what="Ray's nodes are counted") == 1
    asked_at = time.time()
    scaled = watched.controls.scale(rollout_workers=MOST + 2)
    assert in_state(scaled, "starting") == ["worker-1", "worker-2", "worker-3"], "the answer waits for nobody"
    grown = watched.await_status(lambda s: s.step > scaled.step, "an update by those that are there")
    assert in_state(grown, "active") == ["worker-0"]
    watched.controls.pause()
    poll(lambda: num_nodes() == 1 + MOST, what="nodes are added")
    added_at = time.time()
    full = watched.await_status(lambda s: len(in_state(s, "active")) == 1 + MOST, "workers on the nodes that came")
    active_at = time.time()
    assert len({member.node for member in full.pools["rollout"].members if member.node}) == 1 + MOST, "one on each"
    (slot,) = in_state(full, "starting")
    watched.await_status(lambda s: watched.member(s, slot).is_waiting, "for the last one there is no node to add")
    print(machines.ask(machines.head, "status", str(run.folder)))
    watched.controls.resume()
    watched.await_step(full.step + 3)

    down_at = time.time()
    watched.controls.scale(rollout_workers=1)
    watched.await_status(lambda s: len(s.pools["rollout"].members) == 1, "the others leave")
    watched.controls.pause()
    poll(lambda: num_nodes() == 1, what="nodes that idle are taken away")
    print(
        f"TOOK {added_at - asked_at:.1f} s until nodes are there, {active_at - asked_at:.1f} s until workers are, "
        f"{time.time() - down_at:.1f} s until nodes are gone"
    )
    watched.controls.resume()
    run.end(0)
    outcome = Outcome(run.folder, None, watched, "")
    outcome.assert_whole(UPDATES)
    outcome.assert_same_bytes(undisturbed(*SETTINGS), UPDATES)
    assert watched.events("restart") == [], "who waits for a node has not failed"
