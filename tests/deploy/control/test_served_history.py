"""`samples` and `logs` of a run that is known by its URL alone: the same rows as from its folder."""

import json
import sys
import threading
import time
from dataclasses import dataclass

import pytest

from common.errors import ControlError, RunEndingError
from deploy.cli import main
from deploy.control.client import RunClient
from deploy.history import cli as history_cli
from deploy.history.cli import follow_events
from deploy.history.source import Source, open_source
from deploy.run_folder.history import EventRow, Events

DEADLINE_S = 60.0


@pytest.fixture
def minichatgpt(monkeypatch, capsys):
    """Runs `minichatgpt`; returns exit code and output."""

    def run(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", ["minichatgpt", *map(str, arguments)])
            with pytest.raises(SystemExit) as end:
                main()
        return end.value.code, capsys.readouterr()

    return run


def write(folder, *numbers):
    """An event and a sample of each number."""
    with (folder / "events.jsonl").open("a") as events, (folder / "samples.jsonl").open("a") as samples:
        for number in numbers:
            event = {"time": "2026-01-02T03:04:05+00:00", "event": "scale", "slot": "", "text": f"to {number}"}
            events.write(json.dumps(event) + "\n")
            sample = {"kind": "best", "step": number + 1, "draw_index": 0, "prompt": "p", "response": f"r {number}",
                      "score": 0.5, "kl_seq_sum": None}  # fmt: skip
            samples.write(json.dumps(sample) + "\n")


def test_a_run_that_is_asked_tells_the_same_as_its_folder(serve, minichatgpt):
    with serve() as served:
        write(served.folder, *range(30))
        reached = ("--url", served.url, "--token", served.token)
        for command in (("samples", "--grep", "R 1", "--limit", 5), ("samples", "--update", 3), ("logs", "--limit", 7)):
            code, near = minichatgpt(*command, served.folder, "--json")
            assert code == 0
            assert near.out
            assert minichatgpt(*command, *reached, "--json") == (0, near)
        code, told = minichatgpt("logs", *reached, served.folder)
        assert code == 1
        assert "two runs are named" in told.err
        assert minichatgpt("logs")[0] == 1


def test_events_of_a_run_that_is_asked_are_followed_until_nobody_answers(serve, tmp_path, monkeypatch):
    monkeypatch.setattr(history_cli, "POLL_S", 0.01)
    seen = []

    def until(count):
        end = time.monotonic() + DEADLINE_S
        while len(seen) < count:
            assert time.monotonic() < end
            time.sleep(0.005)

    with serve() as served:
        write(served.folder, 0)
        source = open_source(None, tmp_path, url=served.url, token=served.token, token_file=None)

        def follow():
            with source as run:
                follow_events(run, lambda row: seen.append(row.text), after=-1)
                seen.append(run.how_it_ended())

        thread = threading.Thread(target=follow)
        thread.start()
        until(1)
        write(served.folder, 1, 2)
        until(3)
    thread.join(DEADLINE_S)
    assert not thread.is_alive()
    assert seen[:3] == ["to 0", "to 1", "to 2"]
    assert "nobody answers at" in seen[3]


@dataclass
class Answering:
    """Answers in turn, then with its last answer for ever; is over once it has been asked so often."""

    answers: list[Events | ControlError]
    over_after: int
    asked: int = 0

    def events(self, *, after=-1, limit=0):
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        if isinstance(answer, ControlError):
            raise answer
        return answer

    def is_over(self):
        return self.asked >= self.over_after


def followed(answering):
    """Texts of what is shown."""
    seen = []
    source = Source("tiny", answering, answering.is_over, None)
    follow_events(source, lambda row: seen.append(row.text), after=-1)
    return seen


def test_a_run_that_is_ending_is_followed_until_nobody_answers(monkeypatch):
    """A server that ends says so before it refuses connections; how long it does, nobody knows."""
    monkeypatch.setattr(history_cli, "POLL_S", 0.0)
    event = EventRow(number=0, time="2026-01-02T03:04:05Z", event="scale", text="to 3")
    ending = Answering([Events(events=(event,)), RunEndingError("the run is ending")], over_after=5)
    assert followed(ending) == ["to 3"]
    assert ending.asked >= 5, "it was asked again until it was gone"
    gone = Answering([Events(events=(event,)), ControlError("cannot be reached")], over_after=2)
    assert followed(gone) == ["to 3"]
    with pytest.raises(ControlError, match="hangs"):
        followed(Answering([ControlError("hangs")], over_after=9))


def test_a_client_knows_that_a_run_is_ending(serve, plain_run):
    run, raised = plain_run(), []

    def wait_for_a_checkpoint(client):
        try:
            client.checkpoint(DEADLINE_S)
        except ControlError as error:
            raised.append(error)

    with serve(run) as served:
        client = RunClient(None, None, served.url, served.token)
        asking = threading.Thread(target=wait_for_a_checkpoint, args=(client,))
        asking.start()
        end = time.monotonic() + DEADLINE_S
        while "checkpoint" not in run.calls:
            assert time.monotonic() < end
            time.sleep(0.005)
    asking.join(DEADLINE_S)
    assert [type(error) for error in raised] == [RunEndingError]
    assert client.is_over()
