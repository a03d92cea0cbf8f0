"""The same run on a real Ray cluster: the same bytes, no more open to the network than needed, nothing left behind."""

import io
import os
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from common.config import RunConfig
from common.errors import ConfigError, RunStopped
from common.hashing import file_hash
from common.records import Identity, ModelPaths, Progress, StageResult
from common.weights import weights_of
from deploy.fingerprint import folder_hash
from deploy.local import LocalRuntime
from deploy.pipeline import Pipeline
from deploy.runtime import Runtime
from deploy.stop_signal import StopSignal
from learner.stages import StageRequest

pytestmark = pytest.mark.ray

DEADLINE_S = 120.0
ROOT = Path(__file__).parents[3]


def poll(condition: Callable[[], object], *, what: str, deadline_s: float = DEADLINE_S) -> None:
    """Wait until something holds, with an end."""
    end = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < end, f"{what}: not within {deadline_s:.0f} s"
        time.sleep(0.05)


def processes(title: str) -> list[psutil.Process]:
    """Processes of this test's own cluster that work; Ray titles them `ray::Name`, `ray::Name.method`, `ray::task`."""
    found = []
    for process in psutil.Process().children(recursive=True):
        try:
            titles = process.cmdline()
        except psutil.NoSuchProcess:
            continue
        if titles and re.match(title, titles[0]):
            found.append(process)
    return found


def actors() -> list[psutil.Process]:
    return processes(r"ray::(Rollout|Reward|Learner)Actor\b")


def tasks() -> list[psutil.Process]:
    return processes(r"ray::run_stage\b")


def run_ppo(config: RunConfig, folder: Path, runtime: Runtime) -> None:
    """PPO alone: the stages before it are done, evaluation is left out."""
    console = Console(file=io.StringIO(), width=200)
    only = config.model_copy(update={"evaluate": None})
    assert Pipeline(only, folder, start_runtime=lambda: runtime, console=console, again=frozenset({"ppo"})).run()
    assert console.file.getvalue().count("done before") == 4


def assert_same_bytes(local: Path, other: Path) -> None:
    files = ["models/ppo/model.safetensors", *(f"trajectories/update_{step:06d}.safetensors" for step in (1, 2, 3))]
    assert len(list((other / "trajectories").iterdir())) == 3
    assert {file: file_hash(other / file) for file in files} == {file: file_hash(local / file) for file in files}


def test_ppo_on_ray_leaves_the_same_bytes(tiny, tiny_run, run_copy, ray_runtime):
    shutil.rmtree(run_copy / "trajectories")
    run_ppo(tiny(), run_copy, ray_runtime)
    assert_same_bytes(tiny_run, run_copy)
    poll(lambda: not actors(), what="actors are gone")


def test_the_cluster_listens_on_loopback_only(ray_runtime):
    cluster = psutil.Process().children(recursive=True)
    listening = set()
    for process in cluster:
        try:
            listening |= {c.laddr for c in process.net_connections(kind="inet") if c.status == psutil.CONN_LISTEN}
        except psutil.NoSuchProcess:
            continue
    assert len(listening) >= 3, "GCS, raylet and object manager at least"
    assert not [address for address in listening if address.ip not in ("127.0.0.1", "::1", "::ffff:127.0.0.1")]
    assert os.environ["RAY_AUTH_MODE"] == "token"


def test_a_supervised_stage_streams_its_progress(tiny, tiny_run, tmp_path, ray_runtime):
    request = StageRequest("judge", tiny(), None, str(tmp_path / "judge"))
    items = list(ray_runtime.run_stage(request, StopSignal()))
    *progress, result = items
    assert isinstance(result, StageResult)
    assert result.metrics["accuracy"] == 1.0
    assert progress
    assert all(isinstance(item, Progress) for item in progress)
    steps = [item.step for item in progress]
    assert steps == sorted(steps)
    assert folder_hash(tmp_path / "judge") == folder_hash(tiny_run / "models" / "judge")


def test_an_error_of_a_stage_arrives_as_it_was_raised(tiny, tmp_path, ray_runtime):
    config = tiny("data.none={type='files', paths=['/nowhere/x.csv']}", "sft.data=['none']")
    request = StageRequest("sft", config, str(tmp_path), str(tmp_path / "sft"))
    with pytest.raises(ValueError, match=r"/nowhere/x\.csv"):
        list(ray_runtime.run_stage(request, StopSignal()))


def test_a_stage_that_shall_end_ends_at_once_and_its_process_goes(tiny, tmp_path, ray_runtime):
    stop = StopSignal()
    request = StageRequest("judge", tiny("judge.training.epochs=100000"), None, str(tmp_path / "judge"))
    items = ray_runtime.run_stage(request, stop)
    assert isinstance(next(items), Progress)
    stop.request("enough", 3)
    with pytest.raises(RunStopped, match="enough"):
        list(items)
    poll(lambda: not tasks(), what="the stage's process is idle or gone")
    assert not (tmp_path / "judge").exists()


def test_weights_of_a_folder_travel_unchanged(tiny, tiny_run, ray_runtime):
    import ray

    models = tiny_run / "models"
    path = str(models / "ppo")
    here = weights_of(path, Identity(-1, 1))
    paths = ModelPaths(str(models / "sft"), str(models / "reward_model"), str(models / "judge"))
    config = tiny("rollout.workers=1")
    with ray_runtime.members(config, paths, tiny_run, StopSignal(), with_learner=False) as members:
        there = members.weights_of(path, Identity(-1, 1))
        assert (there.identity, there.hash, there.manifest) == (here.identity, here.hash, here.manifest)
        assert ray.get(there.ref, timeout=DEADLINE_S).tobytes() == here.ref.tobytes()


def test_a_second_cluster_in_one_process_is_refused(tiny, ray_runtime):
    from deploy.cluster import RayRuntime

    with pytest.raises(ConfigError, match="Ray is already in use by this process"):
        RayRuntime(tiny())


START = """
from pathlib import Path
from deploy.on_ray.environment import protect_local_cluster
protect_local_cluster()
from common.config_file import load_config
from deploy.cluster import RayRuntime
runtime = RayRuntime(load_config(Path("deploy/configs/tiny.toml")))
print(runtime.facts().nodes is not None)
runtime.close()
"""


@pytest.mark.slow
def test_what_ray_start_left_behind_is_not_joined():
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as folder:  # sockets have short names
        (Path(folder) / "ray").mkdir()
        (Path(folder) / "ray" / "ray_current_cluster").write_text("127.0.0.1:1")
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        done = subprocess.run(
            [sys.executable, "-c", START],
            cwd=ROOT,
            env=environment | {"RAY_TMPDIR": folder},
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
    assert done.stdout.split() == ["True"], done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(("workers", "replicas"), [(1, 1), (4, 2)])
def test_any_number_of_workers_and_replicas_leaves_the_same_bytes(
    tiny, tiny_run, run_copy, ray_runtime, workers, replicas
):
    shutil.rmtree(run_copy / "trajectories")
    run_ppo(tiny(f"rollout.workers={workers}", f"reward_service.replicas={replicas}"), run_copy, ray_runtime)
    assert_same_bytes(tiny_run, run_copy)


@pytest.mark.slow
def test_groups_of_samples_on_ray_leave_the_bytes_of_one_process(tiny, run_copy, tmp_path, ray_runtime):
    groups = ("ppo.samples_per_prompt=4", "ppo.advantage=rloo")
    local = tmp_path / "local"
    shutil.copytree(run_copy, local)
    run_ppo(tiny(*groups), local, LocalRuntime())
    run_ppo(tiny(*groups, "rollout.workers=4"), run_copy, ray_runtime)
    assert_same_bytes(local, run_copy)


@pytest.mark.slow
def test_the_command_runs_everything_on_a_cluster_of_its_own(tiny_run, tmp_path):
    """All stages, evaluation included: the results are those of the run in one process, to the last bit."""
    arguments = ["run", "tiny", "--runs", str(tmp_path)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    with subprocess.Popen(
        [sys.executable, "-m", "deploy", *arguments],
        cwd=ROOT,
        env={**environment, "COLUMNS": "300", "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        started: dict[int, psutil.Process] = {}
        reader = threading.Thread(target=lambda: output.append(process.stdout.read()), daemon=True)
        output: list[str] = []
        reader.start()
        while process.poll() is None:
            try:
                started |= {child.pid: child for child in psutil.Process(process.pid).children(recursive=True)}
            except psutil.NoSuchProcess:
                break
            time.sleep(0.2)
        reader.join(timeout=DEADLINE_S)
    assert process.returncode == 0, output
    _, alive = psutil.wait_procs(list(started.values()), timeout=60)
    assert started
    assert not alive, "the cluster ends with the command"
    for name in ("pretrained", "sft", "reward_model", "judge", "ppo"):
        assert folder_hash(tmp_path / "tiny" / "models" / name) == folder_hash(tiny_run / "models" / name), name
    assert_same_bytes(tiny_run, tmp_path / "tiny")
    here, there = ((folder / "samples.jsonl").read_text() for folder in (tiny_run, tmp_path / "tiny"))
    assert there == here
