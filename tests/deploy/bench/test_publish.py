"""The benchmark of publishing: what is counted apart, in which turns, and that it runs on a cluster of its own."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from types import SimpleNamespace

import pytest

from deploy.bench import publish
from deploy.bench.interleave import take_turns
from deploy.bench.publish import LARGE_BYTES, PARTS, Course, Round, figures_of

PARTS_S = {"take": 0.0, "put": 1.0, "fetch": 0.1, "load": 1.5, "hash": 0.5, "verify": 0.75, "pack": 2.0}


class Answer:
    """What stands for an object of Ray: there at a moment."""

    def __init__(self, value, at):
        self.value, self.at = value, at


@dataclass(frozen=True)
class Handle:
    ref: object = None


class Cluster:
    """A learner and two workers that are not there; who waits for an answer is then at the moment in which it comes."""

    def __init__(self, monkeypatch):
        self.now = 0.0
        self.asked = []
        monkeypatch.setattr(publish, "time", SimpleNamespace(perf_counter=lambda: self.now))
        weights = self.method("weights", {"hash": 1.0, "take": 0.0}, 3.0)
        self.publisher = SimpleNamespace(
            weights=SimpleNamespace(remote=lambda: self._weights(weights)), tensors=self.method("tensors", {}, 20.0)
        )
        slow_to_pack = {"fetch": 0.0, "load": 1.0, "verify": 1.0, "pack": 8.0}
        slow_to_load = {"fetch": 0.0, "load": 5.0, "verify": 1.0, "pack": 1.0}
        self.workers = [
            SimpleNamespace(adopt=self.method("adopt", told, seconds), load=self.method("load", None, 30.0))
            for told, seconds in ((slow_to_pack, 10.0), (slow_to_load, 7.0))
        ]
        self.course = Course(self.publisher, self.workers, 64, get=self.get, wait=self.wait)

    def method(self, name, value, seconds):
        def remote(*arguments):
            self.asked.append(name)
            return Answer(value, self.now + seconds)

        return SimpleNamespace(remote=remote)

    def _weights(self, weights):
        told = weights.remote()
        return "buffer", Answer((Handle(), told.value), told.at)

    def get(self, asked):
        if isinstance(asked, list):
            return [self.get(answer) for answer in asked]
        self.now = max(self.now, asked.at)
        return asked.value

    def wait(self, asked):
        first = min(asked, key=lambda answer: answer.at)
        self.now = max(self.now, first.at)
        return [first], [answer for answer in asked if answer is not first]


def test_from_each_worker_its_own_preparation_is_taken_and_not_the_longest_of_all(monkeypatch):
    cluster = Cluster(monkeypatch)
    assert cluster.course.publish() == 13.0
    (measured,) = cluster.course.rounds
    assert measured.total == 13.0
    # 3 s until the handle, 1 of them the hash; then 10 - 1 - 8 s for one worker, 7 - 1 - 1 s for the other.
    assert measured.moved == 3.0 - 1.0 + 5.0
    assert measured.parts == {
        "hash": 1.0,
        "take": 0.0,
        "put": 2.0,
        "fetch": 0.0,
        "load": 5.0,
        "verify": 1.0,
        "pack": 8.0,
    }


def test_the_other_way_takes_turns_with_ours_in_warm_rounds_too(monkeypatch):
    cluster = Cluster(monkeypatch)
    course = cluster.course
    timed = take_turns({"ours": course.publish, "tensors": course.tensors}, rounds=2, warm_up=1)
    asked = [name for name in cluster.asked if name in ("weights", "tensors")]
    assert asked == ["weights", "tensors", "tensors", "weights", "weights", "tensors"]
    assert timed == {"ours": [13.0, 13.0], "tensors": [30.0, 30.0]}
    assert [measured.total for measured in course.rounds] == [13.0] * 3


def test_hashes_and_the_engines_own_work_are_told_apart_from_what_only_moves():
    rounds = [Round(PARTS_S, moved, moved + 3.0, 2.0) for moved in (3.0, 4.0, 6.0)]
    timed = {"ours": [r.total for r in rounds], "tensors": [60.0, 7.0, 90.0]}
    figures = {f.name.removeprefix("publish.m."): f for f in figures_of("m", rounds, timed, 0.07, LARGE_BYTES)}
    assert figures["moved"].value == 4.0 / 2.0
    assert figures["moved"].is_met is True
    assert figures["hashed"].value == (0.5 + 0.75) / 2.0
    assert figures["load_seconds"].value == 1.5
    assert figures["tensors"].value == 60.0 / 2.0
    assert figures["speedup"].value == 10.0, "the median of 60 / 6, 7 / 7 and 90 / 9"
    assert all(part in figures for part in PARTS)
    small = figures_of("m", rounds, timed, 0.07, LARGE_BYTES - 1)
    assert not [f for f in small if f.must is not None], "of a small model the calls are told"


def test_a_worker_tells_the_parts_that_are_taken_off(monkeypatch):
    from deploy.bench import publish_actors

    monkeypatch.setattr(publish_actors, "fetch", lambda handle: handle.ref)
    publisher, worker = publish_actors.Publisher("tiny", 1), publish_actors.Subscriber("tiny")
    for _ in range(2):
        buffer, (handle, mine) = publisher.weights()
        theirs = worker.adopt(replace(handle, ref=buffer))
        assert set(mine) | {"put"} | set(theirs) >= set(PARTS)
        assert theirs["load"] > 0


@pytest.mark.slow
def test_publishing_on_a_cluster_says_how_long_each_part_took():
    command = [sys.executable, "-m", "deploy", "bench", "publish", "--model", "tiny", "--rounds", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    figures = {f["name"]: f["value"] for f in json.loads(done.stdout)["figures"]}
    assert 0 < figures["publish.tiny.load_seconds"] < figures["publish.tiny.moved_seconds"]
    assert figures["publish.tiny.moved_seconds"] < figures["publish.tiny.total_seconds"]
    assert figures["publish.tiny.tensors_seconds"] > 0
    assert 0 < figures["publish.tiny.top_2_layers"] < 1
