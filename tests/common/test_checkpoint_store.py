"""The checkpoints of a run: one counts once it is whole, the newest whole one is found, and it never goes."""

import errno
import os
import uuid

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from common.checkpoint import Checkpoint, write_shard
from common.checkpoint_store import CheckpointStore, superfluous
from common.errors import CheckpointError
from common.storage import Folder


def shard(url, step, lineage=0):
    return write_shard(url, {"weight": torch.full((3,), float(step))}, {"step": step, "lineage": lineage})


def save(store, step, *, lineage=0, score=None):
    return store.commit(step, shard(store.place(step), step, lineage), {"cursor": 16 * step}, score)


def damage(checkpoint, name="learner.safetensors"):
    """Flip a bit."""
    folder = Folder.at(checkpoint.url)
    content = bytearray(folder.read(name))
    content[len(content) // 2] ^= 1
    folder.fs.pipe_file(f"{folder.path}/{name}", bytes(content))


@pytest.fixture(params=["path", "memory"])
def url(request, tmp_path):
    return str(tmp_path / "checkpoints") if request.param == "path" else f"memory://{tmp_path.name}/checkpoints"


@pytest.fixture
def store(url):
    return CheckpointStore(url, keep_last=2, keep_best=0)


def steps(store):
    return [checkpoint.step for checkpoint in store.checkpoints()]


def names(store):
    return Folder.at(store.url).names()


# --- one after the other


def test_a_folder_that_is_not_there_holds_no_checkpoint(store):
    assert store.checkpoints() == []
    assert store.newest_verified() == (None, [])
    assert store.next_lineage() == 0


def test_what_was_committed_is_found_by_another_process(store, url):
    committed = save(store, 12, lineage=3, score=0.25)
    other = CheckpointStore(url, keep_last=2, keep_best=0)
    assert other.checkpoints() == [committed]
    assert other.newest_verified() == (committed, [])
    assert other.read_state(committed) == {"cursor": 192}
    assert (committed.step, committed.lineage, committed.score) == (12, 3, 0.25)
    assert other.next_lineage() == 4


def test_a_local_checkpoint_has_the_plain_name_of_its_step(tmp_path):
    store = CheckpointStore(str(tmp_path), keep_last=2, keep_best=0)
    assert store.place(12).endswith(".partial")
    assert save(store, 12).url == str(tmp_path / "step_000012")
    assert names(store) == ["step_000012"]
    assert sorted(os.listdir(tmp_path / "step_000012")) == [
        "learner.json",
        "learner.safetensors",
        "manifest.json",
        "state.json",
    ]


def test_a_local_checkpoint_is_on_the_disk_before_it_counts(tmp_path, monkeypatch):
    """Files first, then the folder that names them, then the rename, then the folder above."""
    done = []
    sync, rename = os.fsync, os.rename

    def noted_sync(descriptor):
        done.append(os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")).partition(".")[0])
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted_sync)
    monkeypatch.setattr(os, "rename", lambda *paths: done.append("rename") or rename(*paths))
    save(CheckpointStore(str(tmp_path / "root"), keep_last=2, keep_best=0), 12)
    assert done == ["learner", "learner", "step_000012", "state", "manifest", "step_000012", "rename", "root"]


def test_what_was_only_placed_or_written_does_not_count(store):
    whole = save(store, 1)
    shard(store.place(2), 2)
    assert store.newest_verified() == (whole, [])
    assert steps(store) == [1]


def test_what_was_left_unfinished_is_cleared_by_the_next_place(store, url):
    save(store, 1)
    shard(CheckpointStore(url, keep_last=2, keep_best=0).place(2), 2)  # of a process that died then
    assert len(names(store)) == 2
    save(store, 3)
    assert steps(store) == [1, 3]
    assert len(names(store)) == 2


def test_what_lies_in_the_folder_and_is_none_of_ours_stays(store, tmp_path):
    folder = Folder.at(store.url)
    folder.make()
    for name in ("notes.txt", "step_12", "step_000001.partial", "step_000001.backup"):
        folder.write(name, b"mine")
    for step in range(1, 5):
        save(store, step)
    store.clear()
    assert names(store) == ["notes.txt", "step_000001.backup", "step_000001.partial", "step_12"]


def test_what_is_discarded_leaves_nothing(store):
    shard(store.place(2), 2)
    store.discard(1)
    assert len(names(store)) == 1
    store.discard(2)
    store.discard(2)
    assert names(store) == []


def test_a_commit_needs_a_place(store):
    written = shard(store.place(2), 2)
    with pytest.raises(CheckpointError, match="step 3 was not begun"):
        store.commit(3, written, {}, None)
    store.place(4)
    with pytest.raises(CheckpointError, match="step 2 was not begun, or another one was begun since"):
        store.commit(2, written, {}, None)


# --- what the driver does not see


def test_a_shard_that_the_driver_does_not_see_is_refused(store, tmp_path):
    """The learner wrote to a disk of its own node, under the same path."""
    whole = save(store, 1)
    store.place(2)
    elsewhere = shard(str(tmp_path / "elsewhere"), 2)
    with pytest.raises(CheckpointError, match=r"is not seen by the driver; set ppo\.checkpoint_url"):
        store.commit(2, elsewhere, {}, None)
    assert store.newest_verified() == (whole, [])
    assert len(names(store)) == 1


@pytest.mark.parametrize(("name", "cut"), [("learner.safetensors", 1), ("learner.json", 0)])
def test_a_shard_that_the_driver_sees_otherwise_is_refused(store, name, cut):
    place = store.place(2)
    written = shard(place, 2)
    folder = Folder.at(place)
    content = folder.read(name)
    folder.fs.pipe_file(f"{folder.path}/{name}", content[: len(content) - cut] + b" " * (1 - cut))
    with pytest.raises(CheckpointError, match=name):
        store.commit(2, written, {}, None)
    assert names(store) == []


def test_a_shard_of_another_step_is_refused(store):
    with pytest.raises(CheckpointError, match=r"is of step 3 and lineage 0; step 2 was asked for"):
        store.commit(2, shard(store.place(2), 3), {}, None)
    assert names(store) == []


# --- the newest that verifies


@pytest.mark.parametrize("name", ["learner.safetensors", "learner.json", "state.json", "manifest.json"])
def test_a_damaged_newest_checkpoint_is_passed_over_and_its_file_named(store, name):
    whole, newest = save(store, 5), save(store, 6)
    damage(newest, name)
    found, messages = store.newest_verified()
    assert found == whole
    [message] = messages
    assert f"{newest.name}/{name}" in message


def test_a_newest_checkpoint_without_its_manifest_is_passed_over_and_named(store):
    whole, newest = save(store, 5), save(store, 6)
    Folder.at(newest.url).remove("manifest.json")
    assert store.newest_verified() == (
        whole,
        [f"{newest.url} holds no manifest.json: it was never finished, or is no checkpoint"],
    )


def test_where_all_are_damaged_every_one_is_named(store):
    for checkpoint in (save(store, 5), save(store, 6)):
        damage(checkpoint)
    found, messages = store.newest_verified()
    assert found is None
    assert ["step_000006" in messages[0], "step_000005" in messages[1]] == [True, True]


def test_a_damaged_state_is_not_read(store):
    checkpoint = save(store, 5)
    damage(checkpoint, "state.json")
    with pytest.raises(CheckpointError, match=r"state\.json is damaged"):
        store.read_state(checkpoint)


def test_the_newest_is_of_the_latest_lineage(store):
    """After a rewind from 30 to 20 the run goes on from what it did since."""
    for step, lineage in ((20, 0), (30, 0), (25, 1)):
        newest = save(store, step, lineage=lineage)
    assert store.newest_verified() == (newest, [])
    assert steps(store) == [30, 25]


@pytest.mark.parametrize(("before", "step"), [(9, 8), (8, 6), (7, 6), (3, 2), (2, 2), (0, 2)])
def test_a_rollback_finds_the_newest_whole_one_of_before_or_else_the_oldest(url, before, step):
    store = CheckpointStore(url, keep_last=9, keep_best=0)
    for number in (2, 4, 6, 8):
        saved = save(store, number)
        if number == 4:
            damage(saved)
    newest, _ = store.newest_verified(before_step=before)
    assert newest.step == step


def test_a_damaged_one_of_before_is_passed_over_for_an_older_one(url):
    store = CheckpointStore(url, keep_last=9, keep_best=0)
    saved = [save(store, number) for number in (2, 4, 6)]
    damage(saved[1])
    newest, told = store.newest_verified(before_step=6)
    assert newest.step == 2
    assert len(told) == 1
    assert "is damaged" in told[0]


def test_those_of_more_updates_are_removed_damaged_ones_too(url):
    store = CheckpointStore(url, keep_last=9, keep_best=0)
    saved = [save(store, number) for number in (2, 4, 6, 8)]
    damage(saved[2], "manifest.json")
    store.remove_after(4)
    assert [name[:11] for name in sorted(names(store))] == ["step_000002", "step_000004"]
    assert store.newest_verified()[0].step == 4


def test_a_damaged_checkpoint_does_not_count_among_those_that_stay(store):
    save(store, 10)
    save(store, 20)
    damage(save(store, 30))
    store.newest_verified()
    save(store, 21, lineage=1)
    assert steps(store) == [20, 21]


# --- a step that is reached again


def test_a_step_that_is_reached_again_replaces_its_checkpoint(store):
    first = save(store, 12)
    second = save(store, 12, lineage=1)
    assert store.checkpoints() == [second]
    assert second.url != first.url
    assert names(store) == [second.name]
    third = save(store, 12, lineage=2)
    assert store.checkpoints() == [third]


@pytest.mark.parametrize("dies_in", ["encode_json", "write_manifest", "CheckpointStore._publish"])
def test_a_crash_while_a_step_is_replaced_leaves_the_old_one(store, url, monkeypatch, dies_in):
    first = save(store, 12)
    with monkeypatch.context() as patch:
        patch.setattr(f"common.checkpoint_store.{dies_in}", crash)
        with pytest.raises(KeyboardInterrupt):
            save(store, 12, lineage=1)
    later = CheckpointStore(url, keep_last=2, keep_best=0)
    if dies_in == "CheckpointStore._publish" and not Folder.at(url).is_local:
        assert later.newest_verified()[0].lineage == 1, "in an object store the manifest is the commit"
    else:
        assert later.newest_verified()[0] == first
    again = save(later, 12, lineage=2)
    assert later.checkpoints() == [again]
    assert names(later) == [again.name]


def test_a_crash_before_the_old_one_goes_leaves_the_new_one_as_the_newest(store, url, monkeypatch):
    save(store, 12)
    with monkeypatch.context() as patch:
        patch.setattr("common.checkpoint_store.superfluous", crash)
        with pytest.raises(KeyboardInterrupt):
            save(store, 12, lineage=1)
    later = CheckpointStore(url, keep_last=2, keep_best=0)
    assert [c.lineage for c in later.checkpoints()] == [0, 1]
    assert later.newest_verified()[0].lineage == 1
    save(later, 13, lineage=2)
    assert [(c.step, c.lineage) for c in later.checkpoints()] == [(12, 1), (13, 2)]


def crash(*arguments, **named):
    raise KeyboardInterrupt


def test_what_is_half_removed_is_no_checkpoint_and_goes(store, monkeypatch):
    for step in (1, 2):
        save(store, step)
    remove = Folder.remove

    def manifest_only(self, name):
        if name != "manifest.json":
            raise KeyboardInterrupt
        remove(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Folder, "remove", manifest_only)
        with pytest.raises(KeyboardInterrupt):
            save(store, 3)
    assert steps(store) == [2, 3]
    assert len(names(store)) == 3
    assert store.newest_verified()[1] == []
    save(store, 4)
    assert steps(store) == [3, 4]
    assert len(names(store)) == 2


# --- a disk that is full


def test_a_full_disk_is_told_and_leaves_older_checkpoints_whole(tmp_path, monkeypatch):
    """What the learner wrote fits, what the driver adds does not; a really full disk is in tests/chaos."""
    store = CheckpointStore(str(tmp_path), keep_last=2, keep_best=0)
    whole = save(store, 1)
    written = shard(store.place(2), 2)

    def full(path, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Folder.at(store.url).fs, "pipe_file", full)
        with pytest.raises(CheckpointError, match=r"no room for \S*/step_000002\S*: 3 bytes are needed and \d+ are"):
            store.commit(2, written, {}, None)
    assert names(store) == ["step_000001"]
    assert store.newest_verified() == (whole, [])
    save(store, 2)
    assert steps(store) == [1, 2]


# --- which ones stay


def test_the_newest_and_the_best_stay(url):
    store = CheckpointStore(url, keep_last=2, keep_best=1)
    for step, score in enumerate([0.1, 0.9, 0.3, None, 0.2, 0.9, 0.4, 0.5], start=1):
        save(store, step, score=score)
    assert steps(store) == [6, 7, 8]  # of equal scores the newer one
    for step in (9, 10):
        save(store, step, score=0.0)
    assert steps(store) == [6, 9, 10]


made = st.builds(
    lambda step, lineage, score, number: Checkpoint(f"/c/step_{step:06d}-{number:08x}", step, lineage, score, 1e9, {}),
    st.integers(0, 6),
    st.integers(0, 2),
    st.none() | st.sampled_from([0.0, 0.5, 1.0]),
    st.integers(0, 3),
)


@given(
    st.lists(made, min_size=1, max_size=12, unique_by=lambda c: c.name),
    st.data(),
    st.integers(1, 4),
    st.integers(0, 3),
)
@settings(max_examples=400)
def test_the_last_verified_checkpoint_never_goes(found, data, keep_last, keep_best):
    found = sorted(found, key=lambda c: (c.lineage, c.step, c.name))
    newest = data.draw(st.sampled_from(found))
    damaged = frozenset(c.name for c in found if c != newest and data.draw(st.booleans()))
    gone = superfluous(found, newest, damaged=damaged, keep_last=keep_last, keep_best=keep_best)
    stay = [c for c in found if c not in gone]
    assert newest in stay
    assert not damaged & {c.name for c in stay}
    assert len({c.step for c in stay}) == len(stay) <= keep_last + keep_best
    live = {c.step: c for c in found if c.name not in damaged and c.step != newest.step} | {newest.step: newest}
    others = sorted((c for c in live.values() if c != newest), key=lambda c: (c.lineage, c.step, c.name))
    assert all(c in stay for c in others[max(0, len(others) - keep_last + 1) :])
    best = sorted((c.score for c in live.values() if c.score is not None), reverse=True)[:keep_best]
    assert sorted((c.score for c in stay if c.score is not None), reverse=True)[: len(best)] == best


class AnyHistory(RuleBasedStateMachine):
    """Commits, crashes, damages and rewinds in any order; after each the newest whole checkpoint is found."""

    def __init__(self):
        super().__init__()
        self.url = f"memory://{uuid.uuid4().hex}"
        self.store = CheckpointStore(self.url, keep_last=2, keep_best=1)
        self.step, self.lineage = 0, 0
        self.whole = []
        """Committed, not pruned and not damaged since, oldest first."""

    @rule(score=st.none() | st.sampled_from([0.0, 0.5, 1.0]))
    def commit(self, score):
        self.step += 1
        committed = save(self.store, self.step, lineage=self.lineage, score=score)
        self.whole = [c for c in [*self.whole, committed] if c in self.store.checkpoints()]
        assert self.store.newest_verified()[0] == committed

    @rule()
    def write_and_die(self):
        shard(self.store.place(self.step + 1), self.step + 1, self.lineage)
        self.store = CheckpointStore(self.url, keep_last=2, keep_best=1)

    @precondition(lambda self: self.store.checkpoints())
    @rule(data=st.data(), name=st.sampled_from(["learner.safetensors", "learner.json", "state.json", "manifest.json"]))
    def flip_a_bit(self, data, name):
        victim = data.draw(st.sampled_from(self.store.checkpoints()))
        if victim in self.whole:
            damage(victim, name)
            self.whole.remove(victim)

    @rule()
    def resume(self):
        self.store = CheckpointStore(self.url, keep_last=2, keep_best=1)
        newest, _ = self.store.newest_verified()
        self.step = newest.step if newest is not None else 0
        self.lineage += 1

    @invariant()
    def the_newest_whole_one_is_found(self):
        newest, messages = CheckpointStore(self.url, keep_last=2, keep_best=1).newest_verified()
        assert newest == (self.whole[-1] if self.whole else None)
        there = self.store.checkpoints()
        assert len(there) <= 3
        assert messages or there == [] or newest == there[-1]

    def teardown(self):
        root = Folder.at(self.url)
        for name in root.names():
            root.remove(name)


TestAnyHistory = AnyHistory.TestCase
TestAnyHistory.settings = settings(max_examples=40, stateful_step_count=20, deadline=None)
