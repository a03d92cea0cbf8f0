"""A checkpoint is whole or not there, and any change of a byte is noticed and named."""

import json
import os

import pytest
import torch

from common import checkpoint
from common.checkpoint import file_hash, read_checkpoint, write_checkpoint
from common.errors import CheckpointError

TENSORS = {"a": torch.arange(6, dtype=torch.float32).reshape(2, 3), "b.c": torch.tensor([1, 2], dtype=torch.int64)}
STATE = {"step": 3, "controller": {"coef": 0.25}, "groups": [[{"lr": 1e-3}]]}
FILES = ("learner.safetensors", "state.json", "manifest.json")


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "checkpoints" / "step_000003"
    write_checkpoint(path, TENSORS, STATE)
    return path


def test_what_was_written_is_read_back(folder):
    tensors, state = read_checkpoint(folder)
    assert state == STATE
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in tensors.items():
        assert tensor.dtype == TENSORS[name].dtype
        assert torch.equal(tensor, TENSORS[name])
    assert sorted(p.name for p in folder.parent.iterdir()) == [folder.name]  # nothing is left beside it


def test_views_and_shared_tensors_are_written_as_they_look(tmp_path):
    whole = torch.arange(12.0).reshape(3, 4)
    write_checkpoint(tmp_path / "c", {"whole": whole, "turned": whole.T, "again": whole}, {})
    tensors, _ = read_checkpoint(tmp_path / "c")
    assert torch.equal(tensors["turned"], whole.T)
    assert torch.equal(tensors["again"], whole)


def test_the_same_content_gives_the_same_bytes(folder, tmp_path):
    write_checkpoint(tmp_path / "again", TENSORS, STATE)
    for name in FILES:
        assert (tmp_path / "again" / name).read_bytes() == (folder / name).read_bytes()


def test_a_checkpoint_replaces_an_older_one_of_the_same_name(folder):
    write_checkpoint(folder, {"a": torch.zeros(1)}, {"step": 4})
    tensors, state = read_checkpoint(folder)
    assert (list(tensors), state) == (["a"], {"step": 4})


@pytest.mark.parametrize("dies_in", ["save_file", "file_hash", "_sync"])
def test_a_crash_while_writing_leaves_no_checkpoint_that_could_be_read(tmp_path, monkeypatch, dies_in):
    """The process dies at each stage of writing; only a .partial folder stays, and the next attempt clears it away."""

    def die(*arguments):
        raise KeyboardInterrupt

    path = tmp_path / "step_000001"
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, dies_in, die)
        with pytest.raises(KeyboardInterrupt):
            write_checkpoint(path, TENSORS, STATE)
    assert not path.exists()
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001.partial"]
    with pytest.raises(CheckpointError, match=r"step_000001 holds no manifest\.json"):
        read_checkpoint(path)
    (tmp_path / "step_000001.partial" / "stray").write_text("of the first attempt")
    write_checkpoint(path, TENSORS, STATE)
    assert sorted(p.name for p in path.iterdir()) == sorted(FILES)
    assert [p.name for p in tmp_path.iterdir()] == ["step_000001"]


def test_a_crash_while_writing_leaves_an_older_checkpoint_whole(folder, monkeypatch):
    monkeypatch.setattr(checkpoint, "file_hash", lambda path: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        write_checkpoint(folder, {"a": torch.zeros(1)}, {"step": 4})
    monkeypatch.undo()
    assert read_checkpoint(folder)[1] == STATE


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    with pytest.raises(CheckpointError, match=name):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", FILES[:2])
@pytest.mark.parametrize("position", [0, 0.5, -1])
def test_a_flipped_bit_is_noticed_and_its_file_named(folder, name, position):
    path = folder / name
    content = bytearray(path.read_bytes())
    content[int(position * len(content)) if position > 0 else position] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"{name} is damaged"):
        read_checkpoint(folder)


@pytest.mark.parametrize("name", FILES[:2])
@pytest.mark.parametrize("length", [0, -1])
def test_a_truncated_file_is_noticed_and_named(folder, name, length):
    path = folder / name
    os.truncate(path, length % path.stat().st_size)
    with pytest.raises(CheckpointError, match=rf"{name} is damaged"):
        read_checkpoint(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"files": 3}', '{"files": null}', '"text"'])
def test_a_manifest_that_makes_no_sense_is_named(folder, content):
    (folder / "manifest.json").write_text(content)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        read_checkpoint(folder)


def test_a_manifest_of_another_format_says_which(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"format": 99}))
    with pytest.raises(CheckpointError, match="has format 99; this version reads 1"):
        read_checkpoint(folder)


def test_a_manifest_cannot_leave_out_the_files_that_are_read(folder):
    """Else whoever edits the manifest turns the verification off."""
    (folder / "manifest.json").write_text(json.dumps({"format": 1, "files": {}}))
    (folder / "state.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        read_checkpoint(folder)


def test_a_hash_is_of_all_the_file_however_long(tmp_path):
    path = tmp_path / "long"
    path.write_bytes(b"\0" * (1 << 20) + b"a")
    first = file_hash(path)
    path.write_bytes(b"\0" * (1 << 20) + b"b")
    assert file_hash(path) != first
    assert len(first) == 32
