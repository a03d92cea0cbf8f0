"""Driver and learner must see the same files, with room for what the run writes; nothing of a trial is left behind."""

import shutil
from pathlib import Path

import pytest

from common.errors import ConfigError
from deploy.explain.model import policy_size
from deploy.preflight.models import policy_shape
from deploy.preflight.packing import NodeFacts
from deploy.preflight.room import Need, check_room, room_needed
from deploy.preflight.runtime_facts import RuntimeFacts
from deploy.preflight.storage import check_storage
from deploy.preflight.storage_probe import answer_probe, clear_notes, leave_note, open_place, read_note


def node(node_id, cpus=8.0):
    return NodeFacts(node_id * 56, f"10.0.0.{node_id}", {"CPU": cpus}, {"CPU": cpus})


class Elsewhere:
    """Other nodes, whose processes answer from a disk of their own where `own_disk` says so.

    Args:
        folder: that the driver calls the run folder.
        own_disk: node id to the folder that this node sees instead.
        silent: node ids that do not answer.
    """

    def __init__(self, folder, *, own_disk=None, silent=()):
        self.folder, self.own_disk, self.silent = str(folder), own_disk or {}, silent
        self.asked = {}

    def __call__(self, probes):
        self.asked = dict(probes)
        return {
            node_id: "no process answered within 60 s" if node_id in self.silent else self.answer(node_id, probe)
            for node_id, probe in probes.items()
        }

    def answer(self, node_id, probe):
        disk = self.own_disk.get(node_id)
        if disk is None:
            return answer_probe(probe)
        there = [str(disk) if place == self.folder else place for place in probe.places]
        shown = answer_probe(type(probe)(probe.nonce, tuple(there), probe.writes, probe.reader, probe.inputs))
        problems = {self.folder if place == str(disk) else place: said for place, said in shown.problems.items()}
        return type(shown)(shown.host, shown.folder, problems, shown.missing, {})


def check(config, folder, *nodes, ask=None, inputs=()):
    facts = RuntimeFacts() if not nodes else RuntimeFacts(tuple(nodes), ask or Elsewhere(folder))
    return check_storage(config, folder, facts, inputs)


def failures(*arguments, **options):
    return [finding.failure for finding in check(*arguments, **options)[0] if finding.failure]


def test_one_process_reads_what_it_wrote_and_leaves_nothing(tiny, tmp_path):
    folder = tmp_path / "runs" / "tiny"
    found, room = check(tiny(), folder)
    assert [(f.check, f.failure) for f in found] == [("the run folder", "")]
    assert room == {}
    assert not list(tmp_path.iterdir())


def test_a_run_folder_that_is_there_is_left_as_it_was(tiny, tmp_path):
    (tmp_path / "config.toml").write_text("", encoding="utf-8")
    assert not failures(tiny(), tmp_path, node("1"))
    assert [path.name for path in tmp_path.iterdir()] == ["config.toml"]


def test_all_nodes_are_asked_and_those_of_the_learner_write(tiny, tmp_path):
    nodes = [node("1"), node("2", cpus=1), node("3", cpus=0.25)]
    ask = Elsewhere(tmp_path)
    found, room = check(tiny("learner.num_cpus=4"), tmp_path, *nodes, ask=ask)
    assert not [f.failure for f in found if f.failure]
    assert found[-1].measured == "2 nodes read what the driver wrote; 1 wrote back"
    assert {node_id[0]: probe.writes for node_id, probe in ask.asked.items()} == {"1": True, "2": False}
    assert room.keys() == {str(tmp_path)}
    assert not list(tmp_path.iterdir())


def test_a_run_folder_on_another_disk_is_found(tiny, tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    there.mkdir()
    nodes = [node("1"), node("2")]
    (failure,) = failures(tiny(), here, *nodes, ask=Elsewhere(here, own_disk={nodes[1].node_id: there}))
    assert "on node 10.0.0.2 (22222222): the run folder" in failure
    assert "the driver wrote there, and here it is not to be seen" in failure
    assert "put it on storage that all nodes share" in failure
    assert not list(there.iterdir())


def test_a_learner_whose_writes_do_not_arrive_is_found(tiny, tmp_path):
    class Forgets(Elsewhere):
        """What is written there vanishes."""

        def answer(self, node_id, probe):
            shown = answer_probe(probe)
            clear_notes(self.folder, probe.nonce, [probe.reader])
            return shown

    (failure,) = failures(tiny(), tmp_path, node("1"), ask=Forgets(tmp_path))
    assert "what the learner would write there does not reach the driver" in failure


def test_nodes_with_the_same_trouble_are_told_in_one_message(tiny, tmp_path):
    nodes = [node("1"), node("2")]
    ask = Elsewhere(tmp_path, silent=[n.node_id for n in nodes])
    (failure,) = failures(tiny(), tmp_path, *nodes, ask=ask)
    assert "on nodes 10.0.0.1 (11111111), 10.0.0.2 (22222222): no process answered within 60 s" in failure


def test_inputs_must_be_there_on_every_node(tiny, tmp_path):
    folder = tmp_path / "run"
    (tmp_path / "a.csv").write_text("text\nhello\n", encoding="utf-8")
    inputs = [str(tmp_path / "*.csv"), str(tmp_path / "model")]
    (failure,) = failures(tiny(), folder, node("1"), inputs=inputs)
    assert f"{tmp_path / 'model'} is not there (looked up from {Path.cwd()})" in failure


def test_a_folder_that_cannot_be_written_is_told(tiny, tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    (failure,) = failures(tiny(), tmp_path / "file" / "run")
    assert "the run folder" in failure
    assert "cannot be written and read by the driver: " in failure


def test_memory_is_good_for_one_process(tiny, tmp_path):
    assert not failures(tiny("ppo.checkpoint_url=memory://one-process"), tmp_path / "run")
    fs, path = open_place("memory://one-process")
    assert not fs.ls(path), "the notes are gone"


def test_memory_is_not_shared_between_driver_and_learner(tiny, tmp_path):
    (failure,) = failures(tiny("ppo.checkpoint_url=memory://run"), tmp_path / "run", node("1"))
    assert "ppo.checkpoint_url is memory://run, the memory of one process" in failure
    assert "--local" in failure


def test_checkpoints_may_go_to_another_folder(tiny, tmp_path):
    found, room = check(tiny(f"ppo.checkpoint_url={tmp_path / 'other'}"), tmp_path / "run", node("1"))
    assert [f.check for f in found] == ["the run folder", "ppo.checkpoint_url", "other nodes"]
    assert room.keys() == {str(tmp_path / "run"), str(tmp_path / "other")}
    assert not (tmp_path / "run").exists()


def test_an_unknown_kind_of_url_is_told(tiny, tmp_path):
    (failure,) = failures(tiny("ppo.checkpoint_url=s4://bucket/run"), tmp_path / "run")
    assert "s4://bucket/run cannot be opened" in failure
    with pytest.raises(ConfigError):
        open_place("s4://bucket/run")


def test_a_note_is_read_only_with_its_content(tmp_path):
    assert not read_note(str(tmp_path), "0f", "driver")
    leave_note(str(tmp_path), "0f", "driver")
    assert read_note(str(tmp_path), "0f", "driver")
    (note,) = tmp_path.iterdir()
    note.write_text("0e", encoding="utf-8")
    assert not read_note(str(tmp_path), "0f", "driver")


# --- room


def test_what_is_needed_is_told_for_each_place(tiny, tmp_path):
    config = tiny("ppo.checkpoint_url=memory://run", "ppo.keep_last=5", "ppo.keep_best=2")
    needs = {need.what: need for need in room_needed(config, tmp_path, policy_size(policy_shape(config), config))}
    (checkpoints,) = [need for what, need in needs.items() if what.startswith("8 checkpoints of ")]
    assert checkpoints.place == "memory://run"
    assert needs["models"].total_bytes == 3 * needs["pre-trained model, for other runs"].total_bytes


def test_a_disk_without_room_is_told_with_what_is_needed_and_free(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    needs = [Need("models", str(tmp_path / "models"), 1000), Need("9 checkpoints", str(tmp_path / "c"), 2 * free)]
    (finding,) = check_room(needs, {})
    assert f"{tmp_path} lacks room" in finding.failure
    assert "models (1 kB), 9 checkpoints" in finding.failure
    assert "lower ppo.keep_last" in finding.failure


def test_room_that_another_node_lacks_counts(tmp_path):
    needs = [Need("models", str(tmp_path / "run" / "models"), 9_000), Need("cache", str(tmp_path / ".cache"), 1_000)]
    assert not check_room(needs, {str(tmp_path / "run"): 20_000})[0].failure
    (finding,) = check_room(needs, {str(tmp_path / "run"): 5_000})
    assert "about 10 kB needed, 5 kB free" in finding.failure


def test_what_an_earlier_attempt_left_is_room_already_taken(tmp_path):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "step").write_bytes(bytes(6000))
    needs = [Need("checkpoints", str(tmp_path / "c"), 10_000)]
    assert not check_room(needs, {str(tmp_path / "c"): 5_000})[0].failure
