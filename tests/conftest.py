"""What all tests share: a safe environment, the tiny configuration, one finished run of it, and one Ray cluster.

The environment comes first: Ray and OpenMP read theirs when they are imported.
"""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from common.config import RunConfig
from common.config_file import load_config
from deploy.ray_environment import protect_local_cluster

protect_local_cluster()
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"  # no test touches the network

settings.register_profile("shared-machine", deadline=None)
settings.load_profile("shared-machine")

TINY = Path(__file__).parents[1] / "deploy" / "configs" / "tiny.toml"

Tiny = Callable[..., RunConfig]


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    """Makes the configuration deploy/configs/tiny.toml, with changes as `--set` takes them."""

    def make(*changes: str) -> RunConfig:
        return load_config(TINY, changes)

    return make


@pytest.fixture(scope="session")
def tiny_run(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of `tiny` in one process. To be read only: change a copy."""
    from deploy.launch import launch

    folder = tmp_path_factory.mktemp("runs") / "tiny"
    launch(tiny(), folder, local=True, address=None, again=frozenset())
    return folder


@pytest.fixture
def run_copy(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of the finished run, for a test to change; no cache lies beside it."""
    folder = tmp_path / "runs" / tiny_run.name
    shutil.copytree(tiny_run, folder)
    return folder


@pytest.fixture(scope="session")
def ray_runtime(tiny: Tiny) -> Iterator[object]:
    """One Ray cluster for all tests that want one, large enough for four workers; it outlives single runs."""
    import psutil

    from deploy.cluster import RayRuntime

    class SharedRuntime(RayRuntime):
        """Stays open where a pipeline would close it."""

        def close(self) -> None:
            """The fixture closes it."""

    runtime = SharedRuntime(tiny("rollout.workers=4"))
    started = psutil.Process().children(recursive=True)
    yield runtime
    RayRuntime.close(runtime)
    _, alive = psutil.wait_procs(started, timeout=60)
    assert not alive, f"Ray left processes behind: {alive}"
