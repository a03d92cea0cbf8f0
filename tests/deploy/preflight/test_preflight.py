"""Everything that is in the way is said at once, before anything starts; a run that can start is let through."""

import subprocess
import sys
from pathlib import Path

import pytest

from common.errors import ConfigError
from deploy.preflight.packing import NodeFacts
from deploy.preflight.preflight import examine, preflight
from deploy.preflight.runtime_facts import RuntimeFacts
from deploy.preflight.storage_probe import answer_probe
from deploy.run import run_pipeline

ROOT = Path(__file__).parents[3]


def cluster(cpus=8.0):
    node = NodeFacts("ab" * 28, "10.0.0.1", {"CPU": cpus}, {"CPU": cpus})
    return RuntimeFacts((node,), lambda probes: {node_id: answer_probe(probe) for node_id, probe in probes.items()})


def test_a_run_that_can_start_passes_in_one_process_and_on_a_cluster(tiny, tmp_path):
    preflight(tiny(), tmp_path / "run", RuntimeFacts())
    preflight(tiny(), tmp_path / "run", cluster())
    assert not list(tmp_path.iterdir())


def test_every_part_says_what_it_measured(tiny, tmp_path):
    found = examine(tiny(), tmp_path, cluster())
    assert [finding.check for finding in found] == [
        "data.reviews",
        "rollout on a node",
        "reward_service on a node",
        "learner on a node",
        "all roles together",
        "the run folder",
        "other nodes",
        "room",
    ]
    assert all(finding.measured for finding in found)


def test_all_failures_come_in_one_error_one_message_each(tiny, tmp_path):
    missing = 'data.a={type="files", paths=["/nowhere/a.csv"]}'
    config = tiny(missing, 'sft.data=["reviews", "a"]', "learner.num_gpus=1", "ppo.checkpoint_url=memory://run")
    with pytest.raises(ConfigError) as raised:
        preflight(config, tmp_path, cluster())
    first, *failures = str(raised.value).splitlines()
    assert first == "tiny cannot start, for 3 reasons:"
    assert failures[0].startswith("1. data.a: /nowhere/a.csv does not exist")
    assert failures[1].startswith("2. learner needs num_cpus=0.5 and num_gpus=1 on one node")
    assert failures[2].startswith("  10.0.0.1 (abababab): CPU needed 0.5, free 8 of 8; GPU needed 1, free 0 of 0")
    assert failures[3].startswith("3. ppo.checkpoint_url is memory://run")


def test_one_failure_stands_alone(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"^learner needs num_cpus=9 on one node"):
        preflight(tiny("learner.num_cpus=9"), tmp_path, cluster())


def test_a_cluster_that_cannot_be_reached_is_one_failure_among_others(tmp_path):
    """In a process of its own, for one that has a cluster already cannot be told that."""
    arguments = [
        "run",
        "tiny",
        "--runs",
        str(tmp_path),
        "--address",
        "127.0.0.1:1",
        "--set",
        "ppo.checkpoint_url=s4://x",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "deploy", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 1
    assert "1. no Ray cluster listens at 127.0.0.1:1" in done.stderr
    assert "2. ppo.checkpoint_url: s4://x cannot be opened" in done.stderr


def test_a_model_that_cannot_be_had_leaves_its_room_out(tiny, tmp_path):
    settings = tiny().model_dump() | {"model": {"type": "pretrained", "path": str(tmp_path)}, "pretrain": None}
    found = examine(type(tiny()).model_validate(settings), tmp_path / "run", RuntimeFacts())
    assert [finding.check for finding in found] == ["data.reviews", "model", "the run folder"]
    assert found[1].failure


def test_a_run_whose_data_are_absent_is_told_all_before_its_first_stage(tiny, tmp_path):
    sources = [f'data.{name}={{type="files", paths=["/nowhere/{name}.csv"]}}' for name in "ab"]
    config = tiny(*sources, 'pretrain.data=["a"]', 'sft.data=["b"]')
    with pytest.raises(ConfigError) as raised:
        run_pipeline(config, tmp_path / "run", local=True, address=None, again=frozenset())
    assert "for 2 reasons" in str(raised.value)
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", "ended.json"}, "nothing of a stage"
