"""One checkpoint is whole or not there, on disk and in an object store; any change of a byte is noticed and named."""

import json
import math
import os

import fsspec
import pytest
import torch
from safetensors.torch import save_file

from common.checkpoint import (
    FORMAT,
    Manifest,
    open_checkpoint,
    read_manifest,
    read_shard,
    verify,
    write_manifest,
    write_shard,
)
from common.errors import CheckpointError, ConfigError
from common.storage import Folder, StoredFile

TENSORS = {
    "a": torch.arange(6, dtype=torch.float32).reshape(2, 3),
    "b.c": torch.tensor([1, 2], dtype=torch.int64),
    "half": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "step": torch.tensor(7.0),
    "odd": torch.tensor([math.nan, math.inf, -0.0]),
    "none": torch.empty(0, 3),
}
STATE = {"step": 3, "lineage": 1, "controller": {"coef": 0.25}, "groups": [[{"lr": 1e-3}]]}
SHARD = ("learner.safetensors", "learner.json")
FILES = (*SHARD, "state.json", "manifest.json")


def finish(url, shard, **changed):
    """What the driver adds, as `CheckpointStore.commit` does."""
    folder = Folder.at(url)
    folder.write("state.json", b"{}")
    files = {**shard.files, "state.json": StoredFile.of(b"{}")}
    write_manifest(
        folder,
        Manifest(**{"format": FORMAT, "step": 3, "lineage": 1, "score": 0.5, "written_at": 1e9} | changed, files=files),
    )
    return folder


@pytest.fixture(params=["path", "memory"])
def url(request, tmp_path):
    """A folder on disk, and one in an object store that has no rename."""
    return str(tmp_path / "step_000003") if request.param == "path" else f"memory://{tmp_path.name}/step_000003"


@pytest.fixture
def folder(url):
    return finish(url, write_shard(url, TENSORS, STATE))


def change(folder, name, content):
    folder.fs.pipe_file(f"{folder.path}/{name}", content)


def test_what_was_written_is_read_back_bit_for_bit(folder):
    tensors, state = read_shard(folder.url)
    assert state == STATE
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in tensors.items():
        assert (tensor.dtype, tensor.shape) == (TENSORS[name].dtype, TENSORS[name].shape)
        assert tensor.reshape(-1).view(torch.uint8).tolist() == TENSORS[name].reshape(-1).view(torch.uint8).tolist()
    assert folder.names() == sorted(FILES)
    verify(open_checkpoint(folder))


def test_a_shard_tells_what_is_stored(url):
    shard = write_shard(url, TENSORS, STATE)
    assert set(shard.files) == set(SHARD)
    for name, described in shard.files.items():
        assert described == StoredFile.of(Folder.at(url).read(name))


def test_the_same_content_gives_the_same_bytes_wherever_it_lies(folder, tmp_path):
    other = finish(str(tmp_path / "again"), write_shard(str(tmp_path / "again"), TENSORS, STATE))
    assert {name: other.read(name) for name in FILES} == {name: folder.read(name) for name in FILES}


def test_tensors_that_were_read_do_not_hang_on_the_file(folder):
    tensors, _ = read_shard(folder.url)
    for tensor in tensors.values():
        tensor.zero_()
    again, _ = read_shard(folder.url)
    assert torch.equal(again["a"], TENSORS["a"])
    before = tensors["a"].clone()
    folder.remove("learner.safetensors")
    assert torch.equal(tensors["a"], before)


def test_a_shard_without_a_manifest_is_no_checkpoint(url):
    write_shard(url, TENSORS, STATE)
    with pytest.raises(CheckpointError, match=r"step_000003 holds no manifest\.json: it was never finished"):
        read_shard(url)


def test_a_file_that_is_stored_with_other_bytes_is_noticed_when_it_is_written(url, monkeypatch):
    """A disk, a network or a serializer that loses a bit: read back, compared, refused, removed."""

    def lossy(tensors, path):
        save_file({**tensors, "a": tensors["a"] + 1}, path)

    monkeypatch.setattr("common.checkpoint.save_file", lossy)
    with pytest.raises(CheckpointError, match=r"learner\.safetensors does not hold what was written to it: a differs"):
        write_shard(url, TENSORS, STATE)
    assert Folder.at(url).names() == []


def test_a_store_that_changes_what_it_is_given_is_noticed_when_it_is_written(tmp_path, monkeypatch):
    url = f"memory://{tmp_path.name}/lossy"
    whole = fsspec.get_filesystem_class("memory").put_file

    def lossy(self, source, target, **rest):
        with open(source, "r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"x")
        whole(self, source, target, **rest)

    monkeypatch.setattr(fsspec.get_filesystem_class("memory"), "put_file", lossy)
    with pytest.raises(CheckpointError, match=r"lossy/learner\.safetensors is damaged: \d+ bytes of hash"):
        write_shard(url, TENSORS, STATE)
    assert Folder.at(url).names() == []


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    checkpoint = open_checkpoint(folder)
    folder.remove(name)
    look, at = (read_manifest, folder) if name == "manifest.json" else (verify, checkpoint)
    with pytest.raises(CheckpointError, match=name):
        look(at)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("share", [0, 0.2, 0.5, 0.8, 1])
def test_a_flipped_bit_anywhere_is_noticed_and_its_file_named(folder, name, share):
    content = bytearray(folder.read(name))
    content[min(int(share * len(content)), len(content) - 1)] ^= 1
    change(folder, name, bytes(content))
    with pytest.raises(CheckpointError, match=rf"{name} (is damaged|has format)"):
        verify(open_checkpoint(folder))
    if name in SHARD:
        with pytest.raises(CheckpointError, match=rf"{name} is damaged"):
            read_shard(folder.url)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("length", [0, -1])
def test_a_truncated_file_is_noticed_and_named(folder, name, length):
    content = folder.read(name)
    change(folder, name, content[: length % len(content)])
    with pytest.raises(CheckpointError, match=name):
        verify(open_checkpoint(folder))


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"{}", b'{"files": 3}', b'"text"', b"3", b"\xff\xfe", b"[1, 2]"])
def test_a_manifest_that_makes_no_sense_is_named(folder, content):
    change(folder, "manifest.json", content)
    with pytest.raises(CheckpointError, match=r"manifest\.json"):
        read_manifest(folder)


@pytest.mark.parametrize(
    "changed", [{"step": 4}, {"score": 9.5}, {"lineage": 7}, {"files": {}}, {"step": -1}, {"extra": 1}, {"score": "x"}]
)
def test_a_manifest_that_somebody_edited_is_named(folder, changed):
    """Else whoever edits the manifest turns the verification off."""
    content = json.loads(folder.read("manifest.json"))
    change(folder, "manifest.json", json.dumps(content | changed).encode())
    with pytest.raises(CheckpointError, match=r"manifest\.json is damaged"):
        read_manifest(folder)


def test_a_manifest_must_list_what_is_read(url):
    folder = Folder.at(url)
    write_shard(url, TENSORS, STATE)
    with pytest.raises(CheckpointError, match=r"does not list learner\.json, learner\.safetensors, state\.json"):
        write_manifest(folder, Manifest(format=FORMAT, step=1, lineage=0, score=None, written_at=1e9, files={}))


@pytest.mark.parametrize("number", [1, 3, None])
def test_a_checkpoint_of_another_format_says_which(folder, number):
    content = json.loads(folder.read("manifest.json"))
    change(folder, "manifest.json", json.dumps(content | {"format": number}).encode())
    with pytest.raises(CheckpointError, match=rf"has format {number}; this version reads 2 only"):
        read_shard(folder.url)


def test_a_url_that_nobody_knows_says_what_to_install():
    with pytest.raises(ConfigError, match=r"nowhere://x cannot be opened: .*; give a path, or a URL"):
        Folder.at("nowhere://x")


def test_a_relative_path_is_the_same_folder_wherever_a_process_works(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Folder.at("here").url == str(tmp_path / "here")


def test_a_path_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(CheckpointError, match=r"file/step_000001 cannot be created: \w*Error"):
        write_shard(str(tmp_path / "file" / "step_000001"), TENSORS, STATE)
