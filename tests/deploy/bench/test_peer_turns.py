"""The talk with peers: who is asked does one step and answers; who fails is shown with its last words."""

import io
import json
import sys

import pytest
from rich.console import Console

from common.errors import BenchmarkError
from deploy.bench.peers import children, comparison
from deploy.bench.peers.children import Peer, StepTimes, started
from deploy.bench.peers.programs.turns import Turns

PROGRAM = """
import sys
from pathlib import Path
from deploy.bench.peers.programs.turns import Turns

name, diary = sys.argv[1], Path(sys.argv[2])
turns = Turns.of_this_process()
print("a library says hello")
turns.ready(peer="1.0")

def step(number):
    with diary.open("a") as file:
        file.write(name)
    with turns.phase("generation"):
        pass
    if name == "c":
        raise RuntimeError("no more memory")
    if name == "d":
        sys.stdin.readline()
    return 0.5 + number, 0.25

turns.run(step)
"""


@pytest.fixture
def peer(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM, encoding="utf-8")
    return lambda name: Peer(name, (sys.executable, str(program), name, str(tmp_path / "diary")), comparison.ROOT)


def test_peers_take_turns_in_alternating_order_and_the_first_round_is_thrown_away(peer, tmp_path):
    with started([peer("a"), peer("b")], tmp_path, threads=1) as both:
        turns = comparison.take_turns(both, 2, Console(file=io.StringIO()))
        assert both["a"].name == "a"
    assert (tmp_path / "diary").read_text() == "abbaab"
    assert [times.score for times in turns["a"]] == [1.5, 2.5]
    assert all(0 <= times.generation <= times.total for seen in turns.values() for times in seen)
    assert "a library says hello" in (tmp_path / "a.log").read_text()


def test_a_peer_that_fails_is_shown_with_its_last_words(peer, tmp_path):
    with started([peer("c")], tmp_path, threads=1) as one, pytest.raises(BenchmarkError, match="no more memory"):
        one["c"].step()


def test_a_peer_that_cannot_be_loaded_is_an_error_at_the_start(tmp_path):
    broken = Peer("broken", (sys.executable, "-c", "import no_such_library"), tmp_path)
    with pytest.raises(BenchmarkError, match=r"broken has ended(.|\n)*no_such_library"), started([broken], tmp_path, 1):
        pass


def test_a_peer_that_hangs_is_given_up(peer, tmp_path, monkeypatch):
    monkeypatch.setattr(children, "STEP_TIMEOUT_S", 0.2)
    with (
        started([peer("d")], tmp_path, threads=1) as one,
        pytest.raises(BenchmarkError, match=r"does not answer within 0\.2 s"),
    ):
        one["d"].step()


def test_what_no_phase_took_was_the_update(monkeypatch):
    ticks = iter([10.0, 11.0, 14.0, 20.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(ticks))
    said = io.StringIO()
    turns = Turns(io.StringIO("step\n"), said)
    turns.wait()
    with turns.phase("generation"):
        pass
    turns.add("forward", 2.0)
    turns.done(score=0.5, kl=None)
    expected = {"generation": 3.0, "forward": 2.0, "update": 5.0, "total": 10.0, "score": 0.5, "kl": None}
    assert json.loads(said.getvalue()) == expected


@pytest.mark.parametrize("told", ["", "stop\n"])
def test_anything_but_a_step_ends_a_peer(told):
    with pytest.raises(SystemExit):
        Turns(io.StringIO(told), io.StringIO()).wait()


def test_ratios_are_medians_of_rounds_and_are_held_against_what_is_promised():
    def steps(*totals):
        return [StepTimes(1.0, 1.0, total - 2.0, total, 0.0, None) for total in totals]

    turns = {
        comparison.OURS: steps(10.0, 20.0, 10.0),
        comparison.CLASSIC: steps(15.0, 26.0, 100.0),
        comparison.EXPERIMENTAL: steps(19.0, 38.0, 19.0),
    }
    figures = {figure.name: figure for figure in comparison.figures_of("smollm2-135m", turns)}
    classic = figures["peers.smollm2-135m.ours.over-trl-0.11.4-ppo"]
    experimental = figures["peers.smollm2-135m.ours.over-trl-1.9.2-ppo"]
    assert (classic.value, classic.is_met) == (1.5, True)
    assert (experimental.value, experimental.is_met) == (1.9, False)
    assert figures["peers.smollm2-135m.ours.total"].value == 10.0
    assert figures["peers.smollm2-135m.ours.update"].value == 8.0
    assert not any("ours-top-2" in name for name in figures)
    assert all(figure.must is None for figure in comparison.figures_of("tiny", turns))
