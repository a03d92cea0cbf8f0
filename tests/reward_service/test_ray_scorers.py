"""A replica on Ray: its function's process is where it is, and goes when it goes."""

import time
from pathlib import Path

import psutil
import pytest

from common.errors import ConfigError
from common.records import ModelPaths

pytestmark = [pytest.mark.ray, pytest.mark.slow]

DEADLINE_S = 120.0
PYTHONPATH = str(Path(__file__).with_name("callables"))


@pytest.fixture
def replica_of(tiny, tiny_run, ray_runtime):
    """Starts replicas whose second scorer is a function, and kills them."""
    import ray

    from reward_service.ray_actor import RewardActor

    started = []
    models = tiny_run / "models"
    paths = ModelPaths(str(models / "sft"), str(models / "reward_model"))

    def start(function):
        config = tiny(f"reward_service.scorers=[{{type='model'}}, {{type='function', callable='{function}'}}]")
        environment = {"env_vars": {"PYTHONPATH": PYTHONPATH}}
        actor = RewardActor.options(num_cpus=0.5, runtime_env=environment).remote(config, paths, {})
        started.append(actor)
        ray.get(actor.ready.remote(), timeout=DEADLINE_S)
        return actor

    yield start
    for actor in started:
        ray.kill(actor)


def hosts():
    """Processes of functions below this one."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            if any(part.endswith("function_host.py") for part in process.cmdline()):
                found.append(process)
        except psutil.NoSuchProcess:
            continue
    return found


def test_a_replica_that_is_killed_takes_its_functions_process_with_it(replica_of):
    import ray

    replica = replica_of("tiny_rewards:length")
    probed = ray.get(replica.probe.remote(), timeout=DEADLINE_S)
    assert set(probed) == {"reward_model", "reward_model_p_positive"}
    assert ray.get(replica_of("tiny_rewards:length").probe.remote(), timeout=DEADLINE_S) == probed
    first, second = hosts()
    psutil.Process(first.ppid()).kill()
    psutil.wait_procs([first], timeout=DEADLINE_S)
    assert not first.is_running() or first.status() == psutil.STATUS_ZOMBIE
    assert second.is_running()


def test_a_function_that_cannot_be_imported_there_is_named_here(replica_of):
    from ray.exceptions import RayTaskError

    with pytest.raises(RayTaskError) as raised:
        replica_of("no_such_module:score")
    assert isinstance(raised.value.cause, ConfigError)
    assert "callable 'no_such_module:score' cannot be imported" in str(raised.value.cause)
    end = time.monotonic() + DEADLINE_S
    while hosts():
        assert time.monotonic() < end
        time.sleep(0.05)
