"""`minichatgpt samples` and `minichatgpt logs`: what a run has written down, in the terminal and for programs."""

import io
import json
import shutil
import sys

import pytest
from rich.console import Console

from common.errors import ControlError
from deploy.cli import main
from deploy.history import cli as history_cli
from deploy.history.cli import follow_events
from deploy.history.source import Source
from deploy.history.view import print_events, print_samples
from deploy.run_folder.history import EventRow, RunHistory, SampleRow


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


@pytest.fixture
def listed(minichatgpt):
    """The objects that a command prints with --json."""

    def run(*arguments):
        code, told = minichatgpt(*arguments, "--json")
        assert code == 0
        return [json.loads(line) for line in told.out.splitlines()]

    return run


def written(folder, name):
    return [json.loads(line) for line in (folder / name).read_text(encoding="utf-8").splitlines()]


def event(number, text="it died"):
    return {"time": f"2026-01-02T03:04:{number:02d}.5+00:00", "event": "restart", "slot": "worker-1", "text": text}


def write_events(folder, *rows):
    (folder / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_samples_of_a_run_are_those_that_it_wrote(tiny_run, listed):
    rows = [row for row in written(tiny_run, "samples.jsonl") if row["kind"] == "best"]
    found = listed("samples", tiny_run, "--best", "--limit", 100)
    assert [(row["step"], row["response"], row["score"]) for row in found] == [
        (row["step"], row["response"], row["score"]) for row in sorted(rows, key=lambda row: -row["step"])
    ]
    assert {row["step"] for row in listed("samples", tiny_run, "--update", 2)} == {2}
    assert {row["kind"] for row in listed("samples", tiny_run, "--worst")} == {"worst"}
    assert len(listed("samples", tiny_run, "--limit", 3)) == 3


def test_held_out_answers_are_shown_before_and_after(tiny_run, listed, minichatgpt):
    rows = [row for row in written(tiny_run, "samples.jsonl") if row["kind"] == "heldout"]
    found = listed("samples", tiny_run, "--heldout")
    assert [(row["response_before"], row["response"]) for row in found] == [(r["before"], r["after"]) for r in rows]
    _, told = minichatgpt("samples", tiny_run, "--heldout", "--limit", 1)
    assert len(told.out.splitlines()) == 3
    assert rows[0]["after"] in told.out


def test_a_text_is_looked_for_in_responses(tiny_run, listed, minichatgpt):
    found = listed("samples", tiny_run, "--grep", "GOOD", "--limit", 1000)
    rows = written(tiny_run, "samples.jsonl")
    assert len(found) == len([r for r in rows if "good" in r.get("response", r.get("after"))]) > 0
    code, told = minichatgpt("samples", tiny_run, "--grep", "no such word")
    assert (code, told.out) == (0, "")
    assert "no sample of" in told.err


def test_kinds_exclude_each_other(tiny_run, minichatgpt):
    code, told = minichatgpt("samples", tiny_run, "--best", "--worst")
    assert code == 1
    assert "--best, --worst and --heldout exclude each other" in told.err


def shown(print_rows, *rows, **more):
    console = Console(file=io.StringIO(), width=200)
    print_rows(rows, console, **more)
    return console.file.getvalue()


EVIL = "[bold red]x[/] \x1b]0;title\x07\x1b[2J\u202e \r\nnext\u2028line"


def assert_harmless(text):
    assert "[bold red]x[/]" in text
    assert not any(letter in text for letter in "\x1b\x07\r\u202e\u2028")


def test_what_the_model_wrote_steers_no_terminal():
    sample = SampleRow(kind="best", step=3, draw_index=1, prompt=EVIL, response=EVIL, score=0.5, kl_seq_sum=1.25)
    text = shown(print_samples, sample, sought="x")
    assert_harmless(text)
    facts, _ = text.splitlines()
    assert facts == "update 3 · best · score +0.50 · KL 1.25 nats · draw 1"


def test_what_a_message_holds_steers_no_terminal():
    rows = EventRow(number=0, time="2026-01-02T03:04:05+00:00", event=EVIL, slot=EVIL, text=EVIL)
    text = shown(print_events, rows)
    assert_harmless(text)
    assert len(text.splitlines()) == 1
    assert text.startswith("2026-01-02 03:04:05 ")


def test_the_last_events_are_shown_and_numbered(tmp_path, listed, minichatgpt):
    write_events(tmp_path, *(event(n) for n in range(5)))
    assert [row["number"] for row in listed("logs", tmp_path)] == [0, 1, 2, 3, 4]
    assert [row["number"] for row in listed("logs", tmp_path, "--limit", 2)] == [3, 4]
    _, told = minichatgpt("logs", tmp_path, "--limit", 1)
    assert told.out.split() == ["2026-01-02", "03:04:04", "restart", "worker-1", "it", "died"]


def test_stacks_of_processes_that_hung_are_pointed_to(tmp_path, minichatgpt):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "stuck-worker-0.txt").write_text("stack")
    code, told = minichatgpt("logs", tmp_path)
    assert code == 0
    assert f"{tmp_path / 'logs' / 'stuck-worker-0.txt'}" in told.out
    assert "has no events yet" in told.err


class Telling:
    """A run that writes two more events between any two looks whether it is over, which it is at the fourth.

    Args:
        folder: where it writes.
        goes: whether nobody answers any more once it is over.
    """

    def __init__(self, folder, *, goes=False):
        self.folder, self.goes, self.looks = folder, goes, 0

    def is_over(self):
        self.looks += 1
        write_events(self.folder, *(event(n) for n in range(1 + 2 * self.looks)))
        return self.looks >= 4

    def events(self, *, after=-1, limit):
        if self.goes and self.looks >= 3:
            raise ControlError("nobody answers")
        return RunHistory(self.folder).events(after=after, limit=limit)


def followed(run):
    seen = []
    follow_events(Source("it", run, run.is_over, None), lambda row: seen.append(row.number), after=0)
    return seen


def test_events_are_followed_until_the_run_is_over_and_none_is_missed(tmp_path, monkeypatch):
    monkeypatch.setattr(history_cli, "POLL_S", 0.0)
    assert followed(Telling(tmp_path)) == list(range(1, 9))


def test_a_run_that_goes_while_it_is_asked_is_over_and_one_that_hangs_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(history_cli, "POLL_S", 0.0)
    assert followed(Telling(tmp_path, goes=True)) == list(range(1, 5))
    hangs = Telling(tmp_path, goes=True)
    hangs.is_over = lambda: setattr(hangs, "looks", 3)
    with pytest.raises(ControlError, match="nobody answers"):
        followed(hangs)


def test_to_follow_a_run_that_is_over_ends_and_says_how_it_ended(tiny_run, tmp_path, minichatgpt):
    folder = tmp_path / "tiny"
    shutil.copytree(tiny_run, folder)
    code, told = minichatgpt("logs", folder, "--follow", "--json")
    assert code == 0
    assert [json.loads(line)["text"] for line in told.out.splitlines()] == [
        row["text"] for row in written(folder, "events.jsonl")
    ]
    assert "does not run any more: exit code 0: finished" in told.err
    (folder / "ended.json").unlink()
    assert "so it was killed" in minichatgpt("logs", folder, "--follow")[1].err


def test_a_run_that_is_not_there_is_an_error_that_names_those_that_are(tiny_run, minichatgpt):
    for command in ("samples", "logs", "replay"):
        code, told = minichatgpt(command, "tinny", "--runs", tiny_run.parent)
        assert code == 1
        assert "did you mean 'tiny'?" in told.err
