"""What the preflight learns from a live cluster: nodes, what is free, what a process there sees."""

import pytest

from deploy.preflight.storage_probe import Probe, leave_note, read_note

pytestmark = pytest.mark.ray

DEADLINE_S = 120.0


@pytest.fixture
def holder(ray_runtime):
    """An actor with the options of a placement; gone after the test."""
    import ray

    from deploy.cluster import options

    @ray.remote(max_restarts=0)
    class Holder:
        def ready(self):
            return True

    handles = []

    def start(placement):
        handles.append(Holder.options(**options(placement)).remote())
        ray.get(handles[-1].ready.remote(), timeout=DEADLINE_S)

    yield start
    for handle in handles:
        ray.kill(handle)


def test_what_an_actor_holds_is_not_free(tiny, holder):
    from deploy.preflight.ray_facts import live_nodes

    (before,) = live_nodes()
    holder(tiny("learner.memory_bytes=100000000").learner)
    (now,) = live_nodes()
    assert before.total == now.total
    assert now.total["memory"] - now.free["memory"] == pytest.approx(1e8, abs=1e4)
    assert now.total["CPU"] - now.free["CPU"] == pytest.approx(0.5)
    assert not now.is_draining


def test_custom_resources_are_asked_for(tiny):
    from deploy.cluster import options

    assert options(tiny("rollout.resources={spot = 1}").rollout)["resources"] == {"spot": 1.0}
    assert options(tiny().rollout)["resources"] is None


def test_a_process_on_a_node_reads_and_answers(ray_runtime, tmp_path):
    from deploy.preflight.ray_facts import ask_nodes, live_nodes

    (node,) = live_nodes()
    leave_note(str(tmp_path), "0f", "driver")
    probe = Probe("0f", (str(tmp_path), "memory://x"), writes=True, reader="there", inputs=("/nowhere",))
    answer = ask_nodes({node.node_id: probe}, timeout_s=DEADLINE_S)[node.node_id]
    assert not isinstance(answer, str), answer
    assert read_note(str(tmp_path), "0f", "there")
    assert answer.problems.keys() == {"memory://x"}
    assert answer.missing == ("/nowhere",)
    assert answer.free_bytes[str(tmp_path)] > 0


def test_a_node_that_does_not_exist_fails_in_time(ray_runtime):
    from deploy.preflight.ray_facts import ask_nodes

    answer = ask_nodes({"ab" * 28: Probe("0f", (), writes=False)}, timeout_s=10)["ab" * 28]
    assert isinstance(answer, str)


def test_the_whole_preflight_passes_on_a_live_cluster(tiny, ray_runtime, tmp_path):
    from deploy.preflight.preflight import examine

    found = examine(tiny(), tmp_path / "run", ray_runtime.facts())
    assert not [finding.failure for finding in found if finding.failure]
    assert "1 node read what the driver wrote; 1 wrote back" in [finding.measured for finding in found]
    assert not list(tmp_path.iterdir())


def test_what_an_autoscaler_told_ray_is_known(ray_runtime):
    import ray
    from ray.core.generated import autoscaler_pb2
    from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_put

    from deploy.preflight.growth import NodeGroup
    from deploy.preflight.ray_facts import known_growth

    assert known_growth() is None
    group = autoscaler_pb2.NodeGroupConfig(name="gpu", max_count=-1, resources={"CPU": 8, "GPU": 1})
    told = autoscaler_pb2.ClusterConfig(node_group_configs=[group], max_resources={"CPU": 64})
    key = ray._raylet.GCS_AUTOSCALER_CLUSTER_CONFIG_KEY.encode()
    namespace = ray._raylet.GCS_AUTOSCALER_STATE_NAMESPACE.encode()
    _internal_kv_put(key, told.SerializeToString(), namespace=namespace)
    try:
        growth = known_growth()
    finally:
        _internal_kv_del(key, namespace=namespace)
    assert growth.groups == (NodeGroup("gpu", {"CPU": 8.0, "GPU": 1.0}, float("inf")),)
    assert growth.limits == {"CPU": 64.0}


def test_a_learner_without_a_place_says_what_it_waits_for(tiny, ray_runtime, tmp_path):
    from common.errors import LearnerTimeoutError
    from deploy.on_ray.calls import spawn
    from deploy.on_ray.learner import RayLearner
    from deploy.stop_signal import StopSignal
    from deploy.stopwatch import Stopwatch
    from learner.ray_actor import LearnerActor

    config = tiny("learner.label_selector={disk='fast'}", "learner.room_timeout_s=1")
    learner = RayLearner(
        lambda avoid: spawn(LearnerActor, config.learner, config, None, str(tmp_path), avoid=avoid),
        config,
        watch=Stopwatch(),
        stop=StopSignal(),
        logs=tmp_path,
    )
    try:
        with pytest.raises(LearnerTimeoutError) as raised:
            learner.await_ready()
    finally:
        learner.close()
    said = str(raised.value)
    assert (
        "no node has had room for the learner within 1 s (learner.room_timeout_s): learner needs num_cpus=0.5" in said
    )
    assert "on one node with disk=fast, and no node has that free (" in said
    assert "disk is not set" in said


def test_a_stage_without_a_place_says_what_it_waits_for(tiny, ray_runtime, tmp_path):
    from common.errors import PhaseTimeoutError
    from deploy.stop_signal import StopSignal
    from learner.stages import StageRequest

    config = tiny("learner.resources={rare=1}", "learner.stage_timeout_s=1")
    request = StageRequest("sft", config, None, str(tmp_path))
    with pytest.raises(PhaseTimeoutError) as raised:
        list(ray_runtime.run_stage(request, StopSignal()))
    assert (
        "sft gave no sign for 1 s (learner.stage_timeout_s); it may be stuck, or it waits for a node: learner"
        in str(raised.value)
    )
    assert "rare needed 1, free 0 of 0" in str(raised.value)


def test_pools_spread_where_they_shall_and_selectors_reach_ray(tiny):
    from deploy.cluster import options

    config = tiny("rollout.strategy=spread", "rollout.label_selector={disk='!slow'}", "rollout.num_cpus=3")
    asked = options(config.rollout)
    assert asked["scheduling_strategy"] == "SPREAD"
    assert asked["label_selector"] == {"disk": "!slow"}
    assert asked["runtime_env"]["env_vars"]["OMP_NUM_THREADS"] == "3"
    assert [options(role)["scheduling_strategy"] for role in (config.reward_service, config.learner)] == ["DEFAULT"] * 2


def test_who_avoids_a_node_keeps_the_labels_of_its_role_also_where_no_other_node_has_room(tiny):
    from deploy.on_ray.calls import spawn

    class Asked:
        """Stands for an actor class of Ray's: keeps the options that it is asked with."""

        def options(self, **options):
            self.given = options
            return self

        def remote(self):
            return self

    role = tiny("rollout.label_selector={disk='!slow'}").rollout
    elsewhere = spawn(Asked(), role, avoid="n1").given
    assert elsewhere["label_selector"] == {"disk": "!slow", "ray.io/node-id": "!n1"}
    assert elsewhere["fallback_strategy"] == [{"label_selector": {"disk": "!slow"}}]
    assert "fallback_strategy" not in spawn(Asked(), role).given
    only = tiny("rollout.label_selector={'ray.io/node-id'='n1'}").rollout
    assert spawn(Asked(), only, avoid="n1").given["label_selector"] == {"ray.io/node-id": "n1"}
