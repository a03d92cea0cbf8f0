"""How Ray actors are ended."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from common.vitals import pid_namespace

pytestmark = pytest.mark.ray


@pytest.fixture
def stopped():
    """A stopped process that calls itself an actor."""
    with subprocess.Popen(["bash", "-c", "exec -a ray::Actor sleep 600"]) as process:
        while not Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(b"ray::"):
            pass
        os.kill(process.pid, signal.SIGSTOP)
        yield process
        process.kill()


def test_a_stopped_actor_is_killed_here_and_no_process_that_has_its_number_elsewhere(ray_runtime, stopped):
    import ray

    from deploy.on_ray.transport import end_actor

    @ray.remote(num_cpus=0.1)
    class Actor:
        pass

    node = ray.get_runtime_context().get_node_id()
    facts = {"pid": stopped.pid, "node": node, "pid_namespace": pid_namespace()}
    end_actor(Actor.remote(), facts | {"pid_namespace": "pid:[1]"})
    end_actor(Actor.remote(), facts | {"node": "ab" * 28})
    assert stopped.poll() is None
    end_actor(Actor.remote(), facts)
    assert stopped.wait(timeout=60) == -signal.SIGKILL
