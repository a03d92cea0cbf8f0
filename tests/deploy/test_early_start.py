import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common.config_file import load_config
from common.records import ModelPaths
from deploy.early_start import is_ppo_next, is_work_left
from deploy.on_ray.early_actors import EarlyActors

CONFIG = load_config(Path("deploy/configs/tiny.toml"))
STAGES = ("pretrain", "sft", "reward_model", "judge", "ppo", "evaluate")
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
