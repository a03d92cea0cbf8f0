"""Checkpoints outlive what happens to their writer: SIGKILL at any moment, damaged files, a disk that is full.

A process loads torch once and forks those that save: each of them is killed by its known pid, or kills itself before a
given call that changes the file system. No Ray is needed.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from prometheus_client import CollectorRegistry

from common.checkpoint import read_shard, verify, write_shard
from common.checkpoint_store import CheckpointStore
from common.errors import CheckpointError
from common.metrics import RunMetrics
from common.ppo_config import PPOConfig
from deploy.ppo.checkpoint_writer import CheckpointWriter

ROOT = Path(__file__).parents[2]
DEADLINE_S = 120.0
KILLS = 20
FILES = ("learner.safetensors", "learner.json", "state.json", "manifest.json")

SAVER = """
import os, signal, sys
import torch
from common.checkpoint import write_shard
from common.checkpoint_store import CheckpointStore

CHANGES = {"os.mkdir", "os.rename", "os.remove", "os.rmdir"}

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def die_at(call):
    left = [call]
    def count(event, arguments):
        if event in CHANGES or (event == "open" and arguments[2] & os.O_CREAT):
            left[0] -= 1
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
    sys.addaudithook(count)

def save(url, call):
    store = CheckpointStore(url, keep_last=2, keep_best=1)
    newest, _ = store.newest_verified()
    step, lineage = newest.step if newest else 0, store.next_lineage()
    if call:
        die_at(call)
    while True:
        step += 1
        say("began", step)
        tensors = {f"layer.{i}": torch.full((64, 1024), float(step)) for i in range(8)}
        shard = write_shard(store.place(step), tensors, {"step": step, "lineage": lineage})
        store.commit(step, shard, {"cursor": 16 * step}, float(step % 3))
        say("saved", step)
        if call:
            os._exit(0)

for line in sys.stdin:
    url, call = line.split()
    pid = os.fork()
    if pid == 0:
        save(url, int(call))
    say("pid", pid)
    say("ended", os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


class Saver:
    """Starts processes that save, one at a time, and listens to what they say."""

    def __init__(self, process: subprocess.Popen) -> None:
        self._process = process

    def start(self, url: str, *, dies_at: int = 0) -> int:
        """Save for ever; or once, and die before a change of the file system, counted from 1. Returns its pid."""
        self._process.stdin.write(f"{url} {dies_at}\n")
        self._process.stdin.flush()
        return 0 if dies_at else self.hear("pid")

    def hear(self, word: str) -> int:
        """The number that follows the next `word`; what is said before is left out."""
        return self.listen(word)[-1][1]

    def listen(self, until: str) -> list[tuple[str, int]]:
        """All that is said up to a word, that one included."""
        said = []
        while not said or said[-1][0] != until:
            line = self._process.stdout.readline()
            assert line, "the process that forks has ended"
            word, number = line.split()
            said.append((word, int(number)))
        return said


@pytest.fixture(scope="module")
def saver():
    process = subprocess.Popen(
        [sys.executable, "-c", SAVER], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    yield Saver(process)
    process.stdin.close()
    assert process.wait(DEADLINE_S) == 0


@pytest.fixture
def url(tmp_path):
    return str(tmp_path / "checkpoints")


def look(url: str) -> CheckpointStore:
    """As the process that resumes does."""
    return CheckpointStore(url, keep_last=2, keep_best=1)


def assert_whole(url: str, *, at_least: int) -> int:
    """The newest checkpoint is whole, no older than that, and of one piece; returns its step."""
    newest, messages = look(url).newest_verified()
    assert messages == []
    if newest is None:
        assert at_least == 0
        return 0
    assert newest.step >= at_least
    tensors, state = read_shard(newest.url)
    assert state["step"] == newest.step
    assert all(bool((tensor == newest.step).all()) for tensor in tensors.values())
    assert look(url).read_state(newest) == {"cursor": 16 * newest.step}
    for checkpoint in look(url).checkpoints():
        verify(checkpoint)
    return newest.step


@pytest.mark.slow
def test_a_kill_at_20_random_moments_never_costs_a_checkpoint_that_was_told_of(saver, url):
    rng = random.Random(3)
    known, cut_off = 0, 0
    for _ in range(KILLS):
        pid = saver.start(url)
        saver.hear("began")
        begin = time.monotonic()
        known = saver.hear("saved")
        one_save_s = time.monotonic() - begin
        time.sleep(rng.uniform(0, 2 * one_save_s))
        os.kill(pid, signal.SIGKILL)
        said = saver.listen("ended")
        assert said[-1] == ("ended", -signal.SIGKILL)
        known = max([known, *(step for word, step in said if word == "saved")])
        assert_whole(url, at_least=known)
        cut_off += any(name.endswith(".partial") for name in os.listdir(url))
    assert cut_off > 0, "no kill hit a save: the test tests nothing"
    assert known >= KILLS


def test_a_kill_before_any_change_of_the_file_system_leaves_a_whole_checkpoint(saver, url, tmp_path):
    """Mkdir, open, rename, remove, …: before each of them once, until a save comes through."""
    start = str(tmp_path / "start")
    for _ in range(4):
        saver.start(start, dies_at=10_000)
        assert saver.hear("ended") == 0
    assert [c.step for c in look(start).checkpoints()] == [2, 3, 4]
    newest, partials = {}, 0
    for call in range(1, 10_000):
        shutil.rmtree(url, ignore_errors=True)
        shutil.copytree(start, url)
        saver.start(url, dies_at=call)
        said = saver.listen("ended")
        newest[call] = assert_whole(url, at_least=4)
        partials += any(name.endswith(".partial") for name in os.listdir(url))
        if said[-1] == ("ended", 0):
            break
        assert said[-1] == ("ended", -signal.SIGKILL)
    assert said[-2:] == [("saved", 5), ("ended", 0)]
    assert list(newest.values()) == sorted(newest.values()), "once it counts, it counts"
    assert list(newest.values()).count(5) > 3, "some kills came while older checkpoints were removed"
    assert partials > 3, "some kills came while the new one was written"
    assert sorted(os.listdir(url)) == ["step_000004", "step_000005"], "nothing half done lies around"


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_newest_checkpoint_is_passed_over_for_the_one_before(url, name, damage):
    store = look(url)
    for step in (1, 2, 3):
        save(store, step)
    path = Path(url, "step_000003", name)
    if damage == "cut":
        os.truncate(path, path.stat().st_size // 2)
    else:
        content = bytearray(path.read_bytes())
        position = random.Random(name).randrange(len(content))
        content[position] ^= 1 << random.Random(name).randrange(8)
        path.write_bytes(content)
    newest, messages = look(url).newest_verified()
    assert newest.step == 2
    [message] = messages
    assert message.startswith(f"{path} ")


# --- a disk that is full


def save(store, step, *, state=None, size=150_000):
    shard = write_shard(store.place(step), {"weight": torch.full((size,), float(step))}, {"step": step, "lineage": 0})
    return store.commit(step, shard, state or {}, None)


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 4 MB of its own."""
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip(f"no file system can be mounted here: {mounted.stderr.decode().strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True, timeout=DEADLINE_S)


def free_bytes(folder: Path) -> int:
    room = os.statvfs(folder)
    return room.f_bavail * room.f_frsize


def leave(folder: Path, left_bytes: int) -> Path:
    """Fill the disk up."""
    filler = folder / "filler"
    filler.write_bytes(b"x" * (free_bytes(folder) - left_bytes))
    return filler


@pytest.mark.parametrize("who", ["learner", "driver"])
def test_a_full_disk_is_told_with_what_is_needed_and_free_and_costs_nothing_else(small_disk, who):
    store = look(str(small_disk / "checkpoints"))
    kept = [save(store, step) for step in (1, 2)]
    fits = {"learner": 300_000, "driver": 800_000}[who]
    filler = leave(small_disk, fits)
    state = {"ledger": "x" * 400_000} if who == "driver" else {}
    with pytest.raises(CheckpointError) as told:
        save(store, 3, state=state)
    store.discard(3)
    name = {"learner": "learner.safetensors", "driver": "state.json"}[who]
    found = re.match(rf"no room for (\S+)/{name}: (\d+) bytes are needed and (\d+) are free; older", str(told.value))
    assert found, told.value
    assert found[1].startswith(f"{small_disk}/checkpoints/step_000003.")
    assert int(found[2]) > int(found[3]) > {"learner": 290_000, "driver": 150_000}[who]
    assert free_bytes(small_disk) >= fits - 8192, "what was begun is gone"
    assert store.checkpoints() == kept
    assert store.newest_verified() == (kept[1], [])
    filler.unlink()
    assert save(store, 3, state=state) == store.newest_verified()[0]


def test_training_goes_on_over_a_full_disk_and_saves_again_once_there_is_room(small_disk):
    warnings = []
    store = look(str(small_disk / "checkpoints"))
    writer = CheckpointWriter(
        store,
        PPOConfig(data=["texts"], updates=9, checkpoint_every=1),
        settings=dict,
        save_timeout_s=DEADLINE_S,
        warn=warnings.append,
        metrics=RunMetrics(CollectorRegistry()),
    )
    learner = Writing()
    for step in (1, 2, 3):
        if step == 2:
            filler = leave(small_disk, 300_000)
        learner.step = step
        assert writer.due(step)
        writer.save(learner, learner)
        writer.settle()
        if step == 2:
            filler.unlink()
    writer.close()
    [warning] = warnings
    assert "checkpoint of step 2 failed: CheckpointError: no room for" in warning
    assert [c.step for c in store.checkpoints()] == [1, 3]
    assert sorted(os.listdir(store.url)) == ["step_000001", "step_000003"]


class Writing:
    """A learner, and rollouts, without training."""

    step = 0

    def begin_save(self, url):
        with ThreadPoolExecutor() as executor:
            tensors = {"weight": torch.full((150_000,), float(self.step))}
            return executor.submit(write_shard, url, tensors, {"step": self.step, "lineage": 0})

    def state_dict(self):
        return {}
