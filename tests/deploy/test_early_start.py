import functools
import os
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from common.config_file import load_config
from common.errors import ConfigError
from common.records import ModelPaths
from deploy import cluster
from deploy.cli import main
from deploy.early_start import NICENESS, import_pipeline, is_ppo_next, is_work_left, start_early
from deploy.on_ray import early_actors, start
from deploy.on_ray.early_actors import EarlyActors
from deploy.stage_names import STAGES

CONFIG = load_config(Path("deploy/configs/tiny.toml"))
NOTHING: frozenset[str] = frozenset()
PATHS = ModelPaths("policy", "reward", None)


def with_records(folder: Path, *stages: str) -> Path:
    (folder / "stages").mkdir()
    for stage in stages:
        (folder / "stages" / f"{stage}.json").write_text("{}")
    return folder


def actor() -> Any:
    told: list[ModelPaths] = []
    return SimpleNamespace(told=told, start_from=SimpleNamespace(remote=told.append))


def test_no_cluster_is_started_for_a_run_that_is_done(tmp_path: Path) -> None:
    folder = with_records(tmp_path, *STAGES)
    assert not is_work_left(CONFIG, folder, NOTHING)
    assert is_work_left(CONFIG, folder, frozenset({"evaluate"}))
    (folder / "stages" / "judge.json").unlink()
    assert is_work_left(CONFIG, folder, NOTHING)


def test_actors_are_asked_for_early_only_where_ppo_is_the_next_stage(tmp_path: Path) -> None:
    folder = with_records(tmp_path, "pretrain", "sft", "reward_model")
    assert not is_ppo_next(CONFIG, folder, NOTHING)
    (folder / "stages" / "judge.json").write_text("{}")
    assert is_ppo_next(CONFIG, folder, NOTHING)
    assert not is_ppo_next(CONFIG, folder, frozenset({"sft"}))
    (folder / "stages" / "ppo.json").write_text("{}")
    assert not is_ppo_next(CONFIG, folder, NOTHING)
    assert is_ppo_next(CONFIG, folder, frozenset({"ppo"}))


def test_an_early_actor_is_told_its_models_and_taken_once() -> None:
    first, second = actor(), actor()
    early = EarlyActors({"worker-0": first})
    assert early.take("worker-0", "", PATHS, lambda: second) is first
    assert first.told == [PATHS]
    assert early.take("worker-0", "", PATHS, lambda: second) is second
    assert second.told == []


def test_a_slot_that_shall_avoid_a_node_gets_a_fresh_actor() -> None:
    first, second = actor(), actor()
    assert EarlyActors({"worker-0": first}).take("worker-0", "node", PATHS, lambda: second) is second
    assert first.told == []


def test_who_asks_for_actors_early_imports_neither_torch_nor_transformers() -> None:
    code = "import sys, deploy.on_ray.early_actors; print({'torch', 'transformers'} & set(sys.modules))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert found.stdout.strip() == "set()"


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What `start_early` asked of Ray, which is not there; the environment stays as it was."""
    told: list[str] = []
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("deploy.early_start.protect_local_cluster", lambda: None)
    monkeypatch.setattr("deploy.early_start.refuse_open_local", lambda *_, **__: None)
    monkeypatch.setattr(start, "start_ray", lambda *_, **__: told.append("started"))
    fake = functools.partial(EarlyActors, end_cluster=lambda: told.append("ended"))
    monkeypatch.setattr(early_actors, "EarlyActors", fake)
    return told


def test_a_runtime_that_is_built_after_one_was_closed_has_a_cluster_and_actors_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told: list[str] = []
    monkeypatch.setattr(cluster, "start_ray", lambda *_, **__: told.append("started"))
    old, fresh = actor(), actor()
    early = EarlyActors({"worker-0": old}, end_cluster=lambda: told.append("ended"))
    cluster.RayRuntime(CONFIG, early=early).close()
    assert told == ["ended"]
    again = cluster.RayRuntime(CONFIG, early=early)
    assert told == ["ended", "started"]
    assert again._early is not early
    assert early.take("worker-0", "", PATHS, lambda: fresh) is fresh


def test_a_run_that_is_refused_before_it_has_a_runtime_ends_the_early_cluster_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    told: list[str] = []
    early = EarlyActors(end_cluster=lambda: told.append("ended"))
    monkeypatch.setattr("deploy.early_start.start_early", lambda *_, **__: early)
    monkeypatch.setattr(sys, "argv", ["minichatgpt", "run", "tiny", "--again", "pop", "--runs", str(tmp_path)])
    with pytest.raises(SystemExit, match="1"):
        main()
    assert told == ["ended"]
    early.close()
    assert told == ["ended"]


def test_a_start_that_fails_half_way_ends_what_it_has_begun(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, begun: list[str]
) -> None:
    def fail(*_: object) -> EarlyActors:
        raise ConfigError("no such actor")

    monkeypatch.setattr(early_actors, "spawn_early", fail)
    folder = with_records(tmp_path, "pretrain", "sft", "reward_model", "judge")
    with pytest.raises(ConfigError, match="no such actor"):
        start_early(CONFIG, folder, insecure=False, again=NOTHING)
    assert begun == ["started", "ended"]


def test_a_start_that_succeeds_leaves_the_cluster_to_its_caller(tmp_path: Path, begun: list[str]) -> None:
    early = start_early(CONFIG, tmp_path, insecure=False, again=NOTHING)
    assert early is not None
    assert begun == ["started"]
    early.close()
    assert begun == ["started", "ended"]


@pytest.mark.parametrize("stage", ["pop", "base", "judge"])
def test_no_cluster_is_started_to_run_a_stage_again_that_the_configuration_lacks(
    stage: str, tmp_path: Path, begun: list[str]
) -> None:
    config = CONFIG.model_copy(update={"judge": None})
    assert start_early(config, tmp_path, insecure=False, again=frozenset({stage})) is None
    assert begun == []


@pytest.mark.parametrize(
    ("cores", "asked"),
    [
        (1, ["learner", "worker-0"]),
        (2, ["learner", "worker-0"]),
        (3, ["learner", "worker-0", "worker-1"]),
        (8, ["learner", "worker-0", "worker-1", "replica-0"]),
    ],
)
def test_no_more_actors_load_their_packages_at_a_time_than_there_are_cores_and_those_of_the_first_sample_come_first(
    cores: int, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(early_actors.os, "cpu_count", lambda: cores)
    monkeypatch.setattr(early_actors, "ray_facts", lambda: None)
    monkeypatch.setattr(early_actors, "spawn", lambda *_: actor())
    placement = CONFIG.rollout.model_copy(update={"workers": 2})
    early = early_actors.spawn_early(CONFIG.model_copy(update={"rollout": placement}), {}, "folder")
    assert list(early._actors) == asked


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a thread has the priority of its process")
def test_the_driver_imports_behind_what_is_waited_for_and_is_itself_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    monkeypatch.setitem(sys.modules, "deploy.cluster", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "deploy.run", SimpleNamespace())
    monkeypatch.setattr("deploy.early_start.loading_packages", nullcontext)
    with ThreadPoolExecutor(1) as executor:
        executor.submit(import_pipeline).result(timeout=60)
        behind = executor.submit(lambda: os.getpriority(os.PRIO_PROCESS, threading.get_native_id())).result(timeout=60)
    assert behind == min(own + NICENESS, 19)
    assert os.getpriority(os.PRIO_PROCESS, threading.get_native_id()) == own
