"""What a run has written down, read from the ends of its files: as a reader would that takes the whole of them."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from deploy.run_folder import newest_lines as lines_module
from deploy.run_folder.history import RunHistory
from deploy.run_folder.newest_lines import count_lines, newest_lines, open_lines

KINDS = ("best", "worst")


def update(step, **more):
    seconds = {"total": 1.5}
    return {"step": step, "identity": f"0.{step}", "metrics": {"kl": None}, "seconds": seconds, "ledger": {}} | more


def sample(step, kind="best", response="good", **more):
    return {"kind": kind, "step": step, "draw_index": 3, "prompt": "p", "response": response, "score": 0.5,
            "kl_seq_sum": None} | more  # fmt: skip


def heldout(prompt):
    return {"kind": "heldout", "prompt": prompt, "before": "b", "after": "Good", "score_before": 0, "score_after": 1,
            "judge_before": 0.1, "judge_after": 0.2}  # fmt: skip


def event(number):
    return {"time": "2026-01-02T03:04:05.678+00:00", "event": "active", "slot": "worker-0", "text": f"number {number}"}


def write(path, rows, end=""):
    path.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows) + end, encoding="utf-8")


def steps(history, **wanted):
    return [row.step for row in history.updates(**wanted).updates]


def numbers(history, **wanted):
    return [row.number for row in history.events(**wanted).events]


def test_a_folder_without_files_has_no_history(tmp_path):
    history = RunHistory(tmp_path)
    assert history.updates().updates == history.samples().samples == history.events().events == ()


def test_the_newest_updates_come_oldest_first(tmp_path):
    write(tmp_path / "metrics.jsonl", [update(step) for step in range(1, 8)])
    history = RunHistory(tmp_path)
    assert steps(history) == [1, 2, 3, 4, 5, 6, 7]
    assert steps(history, after=4) == [5, 6, 7]
    assert steps(history, after=2, limit=2) == [6, 7]
    assert steps(history, after=7) == []
    [row] = history.updates(after=6).updates
    assert (row.identity, row.metrics, row.seconds) == ("0.7", {"kl": None}, {"total": 1.5})


def test_a_line_that_is_being_written_is_left_out_until_it_is_whole(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = json.dumps(update(3))
    write(path, [update(1), update(2)], end=whole[:20])
    history = RunHistory(tmp_path)
    assert steps(history) == [1, 2]
    write(path, [update(1), update(2)], end=whole)
    assert steps(history) == [1, 2]
    write(path, [update(1), update(2), update(3)])
    assert steps(history) == [1, 2, 3]


def test_a_line_that_makes_no_sense_is_passed_over_and_keeps_its_number(tmp_path):
    write(tmp_path / "events.jsonl", [event(0)])
    with (tmp_path / "events.jsonl").open("ab") as file:
        file.write(b'{"time": "2026-01-02T03:04:05\xff' + json.dumps(event(1)).encode() + b"\n[]\n\n")
        file.write(json.dumps(event(4)).encode() + b"\n")
    assert numbers(RunHistory(tmp_path)) == [0, 4]


def test_numbers_of_events_stay_while_more_are_written(tmp_path):
    history = RunHistory(tmp_path)
    seen = []
    for count in range(1, 6):
        write(tmp_path / "events.jsonl", [event(n) for n in range(count)])
        new = history.events(after=seen[-1] if seen else -1).events
        assert [row.text for row in new] == [f"number {count - 1}"]
        seen += [row.number for row in new]
    assert seen == [0, 1, 2, 3, 4]
    assert numbers(history, limit=2) == [3, 4]


def test_after_a_rewind_the_updates_that_are_done_again_stand_once(tmp_path):
    rows = [update(1), update(2), update(3), update(2, identity="1.2"), update(3, identity="1.3")]
    write(tmp_path / "metrics.jsonl", rows)
    assert [row.identity for row in RunHistory(tmp_path).updates().updates] == ["0.1", "1.2", "1.3"]


def test_a_file_that_is_cut_back_between_two_calls_is_read_anew(tmp_path):
    history = RunHistory(tmp_path)
    write(tmp_path / "metrics.jsonl", [update(step) for step in range(1, 8)])
    assert steps(history)[-1] == 7
    other = tmp_path / "other"
    write(other, [update(1), update(2)])
    other.replace(tmp_path / "metrics.jsonl")
    assert steps(history) == [1, 2]


def test_a_file_that_is_replaced_while_it_is_read_is_read_as_it_was(tmp_path, monkeypatch):
    monkeypatch.setattr(lines_module, "BLOCK_BYTES", 16)
    path = tmp_path / "lines"
    path.write_bytes(b"one\ntwo\nthree and a half\n")
    with open_lines(path) as opened:
        lines = newest_lines(*opened)
        assert next(lines) == b"three and a half"
        other = tmp_path / "other"
        other.write_bytes(b"x\n")
        other.replace(path)
        assert list(lines) == [b"two", b"one"]


def test_a_file_that_is_cut_back_in_place_while_it_is_read_ends_there(tmp_path, monkeypatch):
    monkeypatch.setattr(lines_module, "BLOCK_BYTES", 8)
    path = tmp_path / "lines"
    path.write_bytes(b"one\ntwo\nthree and a half\n")
    with open_lines(path) as opened:
        path.write_bytes(b"on")
        assert list(newest_lines(*opened)) == []


@pytest.fixture
def texts(tmp_path):
    """Three updates with two samples of a kind each, and two held-out ones."""
    kinds = ("best", "best", "worst", "worst")
    rows = [sample(step, kind, f"{kind} {n} of {step}") for step in (1, 2, 3) for n, kind in enumerate(kinds)]
    write(tmp_path / "samples.jsonl", [*rows, heldout("h1"), heldout("h2"), heldout("h2")])
    return RunHistory(tmp_path)


def responses(history, **wanted):
    return [row.response for row in history.samples(**wanted).samples]


def test_samples_come_newest_update_first_and_best_before_worst(texts):
    found = texts.samples().samples
    assert [(row.kind, row.step) for row in found[:4]] == [("heldout", None)] * 2 + [("best", 3)] * 2
    assert (found[0].prompt, found[0].response, found[0].score) == ("h1", "Good", 1.0)
    assert (found[0].response_before, found[0].score_before) == ("b", 0.0)
    assert responses(texts, update=2) == ["best 0 of 2", "best 1 of 2", "worst 2 of 2", "worst 3 of 2"]
    assert responses(texts, kind="best", limit=3) == ["best 0 of 3", "best 1 of 3", "best 0 of 2"]
    assert responses(texts, kind="worst", update=1) == ["worst 2 of 1", "worst 3 of 1"]
    assert [row.prompt for row in texts.samples(kind="heldout").samples] == ["h1", "h2"]
    assert responses(texts, update=9) == []


def test_samples_are_found_by_their_text_whatever_its_case(texts):
    assert responses(texts, contains="WORST 2") == [f"worst 2 of {step}" for step in (3, 2, 1)]
    assert responses(texts, contains="good", limit=1) == ["Good"]
    assert responses(texts, contains="nothing like it") == []


def test_a_long_file_is_not_read_to_its_start_and_that_is_said(tmp_path):
    write(tmp_path / "samples.jsonl", [sample(step, response="x" * 1000) for step in range(1, 1001)])
    history = RunHistory(tmp_path, most_bytes=200_000)
    assert not history.samples(update=1).is_complete
    assert history.samples(update=990).is_complete
    assert RunHistory(tmp_path).samples(update=1).samples[0].step == 1


def test_an_answer_reads_the_end_of_a_long_file_only(tmp_path, monkeypatch):
    write(tmp_path / "metrics.jsonl", [update(step, pad="x" * 300) for step in range(1, 2001)])
    read = []
    path_open = type(tmp_path).open

    def counted(path, *arguments, **named):
        file = path_open(path, *arguments, **named)

        class Counted:
            def __enter__(self):
                return self

            def __exit__(self, *told):
                file.close()

            def seek(self, *where):
                return file.seek(*where)

            def read(self, size):
                read.append(size)
                return file.read(size)

        return Counted()

    monkeypatch.setattr(type(tmp_path), "open", counted)
    assert steps(RunHistory(tmp_path), limit=10) == list(range(1991, 2001))
    assert sum(read) == lines_module.BLOCK_BYTES


@settings(max_examples=200, deadline=None)
@given(
    lines=st.lists(st.binary(max_size=30).map(lambda line: line.replace(b"\n", b"")), max_size=12),
    end=st.binary(max_size=9).map(lambda line: line.replace(b"\n", b"")),
    block=st.integers(1, 40),
)
def test_lines_from_the_end_are_the_lines_of_the_file(tmp_path_factory, lines, end, block):
    path = tmp_path_factory.getbasetemp() / "lines"
    path.write_bytes(b"".join(line + b"\n" for line in lines) + end)
    with pytest.MonkeyPatch.context() as patch, open_lines(path) as opened:
        patch.setattr(lines_module, "BLOCK_BYTES", block)
        assert list(newest_lines(*opened)) == lines[::-1]
        assert count_lines(*opened) == len(lines)


@settings(max_examples=100, deadline=None)
@given(
    rows=st.lists(
        st.tuples(st.integers(0, 2), st.sampled_from(["best", "worst"]), st.sampled_from("aAb")), max_size=20
    ),
    update_=st.none() | st.integers(1, 12),
    kind=st.sampled_from([None, *KINDS]),
    contains=st.sampled_from([None, "a", "B"]),
    limit=st.integers(1, 25),
)
def test_samples_are_those_that_a_naive_reader_finds(tmp_path_factory, rows, update_, kind, contains, limit):
    step, written = 1, []
    for number, (more, of_kind, response) in enumerate(rows):
        step += more
        written.append(sample(step, of_kind, response, draw_index=number))
    folder = tmp_path_factory.getbasetemp()
    write(folder / "samples.jsonl", written)
    fitting = [
        row for row in written
        if update_ in (None, row["step"]) and kind in (None, row["kind"])
        and (contains is None or contains.lower() in row["response"].lower())
    ]  # fmt: skip
    expected = sorted(fitting, key=lambda row: -row["step"])[:limit]
    found = RunHistory(folder).samples(update=update_, kind=kind, contains=contains, limit=limit).samples
    assert [row.draw_index for row in found] == [row["draw_index"] for row in expected]
