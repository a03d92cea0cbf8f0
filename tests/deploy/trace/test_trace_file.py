import json
from pathlib import Path

import pytest

from common.errors import DataError
from deploy.trace.trace_file import TraceFile, read_trace


def told(message: str) -> None:
    raise AssertionError(message)


def written(path: Path) -> TraceFile:
    file = TraceFile(path, clock=iter([10.0, *(10.5 + n for n in range(20))]).__next__, told=told)
    file.span("worker-0", "generate", 11.0, 11.25, {"chunk": 3})
    file.count("queued", {"rollout": 2.0})
    file.span("driver", "collect", 10.5, 11.5, {})
    return file


def test_a_closed_trace_is_json_with_times_in_microseconds_since_it_began(tmp_path: Path) -> None:
    written(tmp_path / "trace.json").close()
    events = json.loads((tmp_path / "trace.json").read_text())
    (span,) = [event for event in events if event["name"] == "generate"]
    assert (span["ph"], span["ts"], span["dur"], span["args"]) == ("X", 1_000_000, 250_000, {"chunk": 3})
    assert events == read_trace(tmp_path / "trace.json")


def test_rows_are_named_once_and_the_driver_is_above_the_workers(tmp_path: Path) -> None:
    written(tmp_path / "trace.json").close()
    events = read_trace(tmp_path / "trace.json")
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    order = {event["tid"]: event["args"]["sort_index"] for event in events if event["name"] == "thread_sort_index"}
    assert sorted(names.values()) == ["driver", "worker-0"]
    assert [names[tid] for tid in sorted(order, key=lambda tid: order[tid])] == ["driver", "worker-0"]


def test_what_was_written_before_a_crash_can_be_read(tmp_path: Path) -> None:
    path = tmp_path / "trace.json"
    written(path).close()
    whole = read_trace(path)
    text = path.read_text()
    for cut in (text[:-3], text[: text.rindex("}") - 4]):  # without the bracket; in the midst of the last event
        path.write_text(cut)
        assert read_trace(path) == whole[: len(read_trace(path))]
        assert len(read_trace(path)) >= len(whole) - 1


def test_a_file_that_is_no_trace_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trace.json").write_text('{"a": 1}\n')
    with pytest.raises(DataError, match="no trace of a run"):
        read_trace(tmp_path / "trace.json")
    with pytest.raises(DataError, match="--trace"):
        read_trace(tmp_path / "missing.json")


def test_a_disk_that_takes_nothing_ends_the_trace_and_not_the_run(tmp_path: Path) -> None:
    messages: list[str] = []
    (tmp_path / "file").write_text("in the way of a folder")
    file = TraceFile(tmp_path / "file" / "trace.json", told=messages.append)
    file.span("driver", "collect", 0.0, 1.0, {})
    file.close()
    assert len(messages) == 1
    assert "goes on without a trace" in messages[0]
