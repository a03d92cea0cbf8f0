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
