"""The benchmark of publishing: what is counted apart, and that it runs on a cluster of its own."""

import json
import subprocess
import sys

import pytest

from deploy.bench.publish import LARGE_BYTES, PARTS, Round, _figures

PARTS_S = {"take": 0.0, "put": 1.0, "fetch": 0.1, "load": 1.5, "hash": 0.5, "verify": 0.75, "pack": 2.0}


def test_hashes_and_the_engines_own_work_are_told_apart_from_what_only_moves():
    rounds = [Round(PARTS_S, total, 2.0) for total in (6.0, 7.0, 9.0)]
    figures = {f.name.removeprefix("publish.m."): f for f in _figures("m", rounds, [70.0], 3.0, 0.07, LARGE_BYTES)}
    assert figures["moved"].value == (7.0 - 0.5 - 0.75 - 2.0) / 2.0
    assert figures["moved"].is_met is True
    assert figures["hashed"].value == (0.5 + 0.75) / 2.0
    assert figures["load_seconds"].value == 1.5
    assert figures["speedup"].value == 10.0
    assert all(part in figures for part in PARTS)
    small = _figures("m", rounds, [70.0], 3.0, 0.07, LARGE_BYTES - 1)
    assert not [f for f in small if f.must is not None and f.unit == "copies"], "of a small model the calls are told"


@pytest.mark.slow
def test_publishing_takes_one_call_of_the_learner_and_one_of_each_worker():
    command = [sys.executable, "-m", "deploy", "bench", "publish", "--model", "tiny", "--rounds", "1", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    figures = {f["name"]: f["value"] for f in json.loads(done.stdout)["figures"]}
    assert figures["publish.tiny.calls"] == 3
    assert 0 < figures["publish.tiny.load_seconds"] < figures["publish.tiny.total_seconds"]
    assert 0 < figures["publish.tiny.top_2_layers"] < 1
