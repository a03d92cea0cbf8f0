import itertools
import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from common.config import RunConfig
from common.config_file import load_config
from common.pool_actions import Send
from common.ports import Call, MemberKey, Reply
from common.records import Identity, Stats, UpdateReport
from deploy.run import run_pipeline
from deploy.trace.picture import draw_traces
from deploy.trace.run_trace import RunTrace
from deploy.trace.trace_file import TraceFile, read_trace

TINY = Path("deploy/configs/tiny.toml")
WORKER = MemberKey("rollout", "worker-0", 1)


def spans_by_row(path: Path) -> dict[str, list[dict[str, Any]]]:
    events = read_trace(path)
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    rows = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            rows[names[event["tid"]]].append(event)
    return rows


def assert_no_overlap(spans: list[dict[str, Any]]) -> None:
    for before, after in itertools.pairwise(sorted(spans, key=lambda span: (span["ts"], span["dur"]))):
        assert before["ts"] + before["dur"] <= after["ts"] + 1, (before, after)


@pytest.fixture(scope="module")
def traced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    config: RunConfig = load_config(TINY)
    run_pipeline(config, folder, local=True, address=None, again=frozenset(), with_trace=True)
    return folder


def test_spans_of_a_row_do_not_overlap(traced: Path) -> None:
    rows = spans_by_row(traced / "trace.json")
    assert {"driver", "learner", "worker-0", "worker-1", "replica-0"} <= set(rows)
    for row, spans in rows.items():
        if row != "driver":
            assert_no_overlap(spans)


def test_every_chunk_that_was_trained_is_generated_and_scored(traced: Path) -> None:
    rows = spans_by_row(traced / "trace.json")
    spans = [span for row in rows.values() for span in row]
    chunks = {
        name: {span["args"]["chunk"] for span in spans if span["name"] == name and "chunk" in span["args"]}
        for name in ("generate", "score")
    }
    lines = (traced / "metrics.jsonl").read_text().splitlines()
    trained = json.loads(lines[-1])["ledger"]["trained"]
    assert chunks["score"] <= chunks["generate"]
    assert len(chunks["score"]) * 8 == trained  # rollout.chunk_sequences of tiny.toml
    updates = [span["args"] for span in rows["learner"] if span["name"] == "update"]
    assert [args["step"] for args in updates] == [1, 2, 3]
    assert sum(args["samples"] for args in updates) == trained


def test_a_trace_is_drawn(traced: Path, tmp_path: Path) -> None:
    draw_traces([("tiny", traced / "trace.json")], tmp_path / "trace.png", start_s=0.0, seconds=1.0)
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")


def test_work_whose_replies_arrive_together_does_not_overlap(tmp_path: Path) -> None:
    now = [0.0]
    trace = RunTrace(TraceFile(tmp_path / "trace.json", clock=lambda: now[0], told=print))
    for call_id in (1, 2):
        trace.see(Send(Call(call_id, WORKER, "score")))
    now[0] = 1.0
    for call_id in (1, 2):  # the driver was busy when the first one came
        trace.replied(Reply(call_id, stats=Stats(seconds={"fetch": 0.1, "score": 0.4})))
    trace.file.close()
    spans = spans_by_row(tmp_path / "trace.json")["worker-0"]
    assert_no_overlap(spans)
    assert sum(span["dur"] for span in spans) == 500_000


def test_an_answer_of_a_call_that_nobody_made_draws_nothing(tmp_path: Path) -> None:
    trace = RunTrace(TraceFile(tmp_path / "trace.json", told=print))
    trace.replied(Reply(7, stats=Stats(seconds={"generate": 1.0})))
    trace.file.close()
    assert spans_by_row(tmp_path / "trace.json") == {}


def test_weights_that_are_fetched_beside_the_work_have_a_row_of_their_own(tmp_path: Path) -> None:
    now = [0.0]
    trace = RunTrace(TraceFile(tmp_path / "trace.json", clock=lambda: now[0], told=print))
    trace.see(Send(Call(1, WORKER, "generate")))
    trace.see(Send(Call(2, WORKER, "prefetch")))
    now[0] = 0.5
    trace.replied(Reply(2))
    now[0] = 1.0
    trace.replied(Reply(1, stats=Stats(seconds={"generate": 1.0})))
    trace.file.close()
    rows = spans_by_row(tmp_path / "trace.json")
    assert [span["dur"] for span in rows["worker-0"]] == [1_000_000]
    assert [span["name"] for span in rows["worker-0 prefetch"]] == ["prefetch"]


def test_an_update_is_drawn_from_the_beginning_of_the_attempt_that_was_finished(tmp_path: Path) -> None:
    trace = RunTrace(TraceFile(tmp_path / "trace.json", clock=lambda: 0.0, told=print))
    trace.phase("collect", 0.0, 1.0)
    trace.phase("update", 1.0, 2.0)  # payloads were lost, or the learner
    trace.phase("collect", 2.0, 5.0)
    trace.phase("update", 5.0, 5.5)
    trace.phase("update", 5.5, 7.0)
    trace.updated(UpdateReport(1, Identity(0, 1), ((0, 0),), {}, {}))
    trace.file.close()
    spans = spans_by_row(tmp_path / "trace.json")["learner"]
    assert [(span["name"], span["ts"], span["dur"]) for span in spans] == [("update", 5_000_000, 2_000_000)]
