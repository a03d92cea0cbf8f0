"""The deploy files as a user has them: a copy, with secrets made by its own script, built by kubectl's kustomize."""

import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[3]
BUILDS = ("base", "cluster", "overlays/cpu-demo", "overlays/gpu")
Manifests = list[dict[str, Any]]


def program(name: str) -> str:
    """One that a package of the extra `dev` brings."""
    found = shutil.which(name, path=str(Path(sys.executable).parent)) or shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not installed: pip install 'minichatgpt[dev]'")
    return found


@pytest.fixture(scope="session")
def tool() -> Callable[[str], str]:
    """Path of a program, or a skip."""
    return program


@pytest.fixture(scope="session")
def kubernetes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """deploy/kubernetes with what it refers to, and secrets."""
    copy = tmp_path_factory.mktemp("deploy")
    for folder in ("kubernetes", "grafana", "prometheus"):
        shutil.copytree(ROOT / "deploy" / folder, copy / folder, ignore=shutil.ignore_patterns("secrets"))
    subprocess.run([copy / "kubernetes" / "make-secrets"], check=True, stdout=subprocess.DEVNULL)
    return copy / "kubernetes"


@pytest.fixture(scope="session")
def built(kubernetes: Path) -> Callable[[str], Manifests]:
    """What `kubectl apply -k` would send, by folder."""

    @cache
    def build(folder: str) -> Manifests:
        done = subprocess.run(
            [program("kubectl"), "kustomize", kubernetes / folder], capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        assert not done.stderr, done.stderr
        return list(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))

    return build


@pytest.fixture(params=BUILDS)
def manifests(request: pytest.FixtureRequest, built: Callable[[str], Manifests]) -> Manifests:
    """Each of the builds."""
    return built(request.param)


def cluster_specs(manifests: Manifests) -> Iterator[dict[str, Any]]:
    for manifest in manifests:
        if manifest["kind"] == "RayCluster":
            yield manifest["spec"]
        if manifest["kind"] == "RayJob":
            yield manifest["spec"]["rayClusterSpec"]


@pytest.fixture
def cluster_spec(manifests: Manifests) -> dict[str, Any]:
    """Of the one Ray cluster of a build."""
    (spec,) = cluster_specs(manifests)
    return spec


@pytest.fixture
def pods(manifests: Manifests, cluster_spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Pod templates by role."""
    found = {"head": cluster_spec["headGroupSpec"]["template"]}
    found |= {group["groupName"]: group["template"] for group in cluster_spec["workerGroupSpecs"]}
    for manifest in manifests:
        if manifest["kind"] == "RayJob":
            found["submitter"] = manifest["spec"]["submitterPodTemplate"]
    return found


@pytest.fixture
def until_there() -> Callable[[Path], None]:
    """Waits for a file that holds something."""

    def wait(path: Path) -> None:
        deadline = time.monotonic() + 60
        while not (path.is_file() and path.stat().st_size):
            assert time.monotonic() < deadline, f"{path} has not come"
            time.sleep(0.02)

    return wait
