"""Events of a run: one line each, whoever writes; shown unless they are no news; counted."""

import io
import json
import threading
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console

from common.pool_actions import Note
from deploy.run_folder.event_log import EventLog


@pytest.fixture
def log(tmp_path):
    console, counted = Console(file=io.StringIO(), width=500), []
    return EventLog(tmp_path, console, count=counted.append), console.file, counted


def lines(folder):
    return [json.loads(line) for line in (folder / "events.jsonl").read_text(encoding="utf-8").splitlines()]


def test_an_event_is_one_line_of_json_and_one_line_on_the_terminal(log, tmp_path):
    events, shown, counted = log
    events.write("resumed", "training goes on from [step_000002] [/no markup], „wirklich“")
    events.note(Note("restart", "worker-1", "rollout member worker-1 was lost in generate: it died"))
    first, second = lines(tmp_path)
    written = datetime.fromisoformat(first.pop("time"))
    assert abs(datetime.now(UTC) - written) < timedelta(minutes=10)
    assert first == {
        "event": "resumed", "slot": "", "text": "training goes on from [step_000002] [/no markup], „wirklich“"
    }  # fmt: skip
    assert (second["event"], second["slot"]) == ("restart", "worker-1")
    assert shown.getvalue().splitlines() == [
        f"{written:%H:%M:%S} training goes on from [step_000002] [/no markup], „wirklich“",
        f"{second['time'][11:19]} rollout member worker-1 was lost in generate: it died",
    ]
    assert counted == ["resumed", "restart"]


def test_a_good_start_is_written_down_and_counted_and_not_shown(log, tmp_path):
    events, shown, counted = log
    events.note(Note("active", "worker-0", "rollout member worker-0 takes work"))
    assert [line["event"] for line in lines(tmp_path)] == ["active"]
    assert counted == ["active"]
    assert shown.getvalue() == ""


def test_what_several_threads_write_stays_apart(log, tmp_path):
    events, _, counted = log

    def write(name):
        for number in range(50):
            events.write(name, f"{number} " + name * 500)

    threads = [threading.Thread(target=write, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=60)
    found = lines(tmp_path)
    assert len(found) == len(counted) == 200
    for name in "abcd":
        texts = [line["text"] for line in found if line["event"] == name]
        assert texts == [f"{number} " + name * 500 for number in range(50)]


def test_events_of_an_earlier_start_stay(log, tmp_path):
    log[0].write("resumed", "one")
    EventLog(tmp_path, Console(file=io.StringIO()), count=lambda event: None).write("resumed", "two")
    assert [line["text"] for line in lines(tmp_path)] == ["one", "two"]


def test_a_disk_that_takes_no_event_ends_nothing_and_the_event_is_shown(log, tmp_path):
    events, shown, counted = log
    (tmp_path / "events.jsonl").mkdir()
    events.note(Note("restart", "worker-1", "it died"))
    first, second = shown.getvalue().splitlines()
    assert "events.jsonl" in first
    assert second.endswith("it died")
    assert counted == ["restart"]
