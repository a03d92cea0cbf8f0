"""`minichatgpt top`: what it shows, and what its keys do."""

import contextlib
import io
import os
import pty
import re
import select
import signal
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.live import Live

from deploy.cli import main
from deploy.control.target import find_run
from deploy.run_folder.history import RunHistory
from deploy.top.top import Top
from deploy.top.view import BLOCKS, KEYS, lines, sparkline
from deploy.top.watching import View, Watcher

ROOT = Path(__file__).parents[4]


class Keys:
    """Presses these, and then `q`."""

    is_there = True

    def __init__(self, *keys: str) -> None:
        self.keys = [*keys, "q"]

    def read(self, timeout_s: float) -> str | None:
        return self.keys.pop(0)


@pytest.fixture
def view_of(all_scenes, history_of):
    def made(name: str) -> View:
        status, history = all_scenes[name]
        past = RunHistory(history_of(**history))
        return View(status, past.updates().updates, past.events().events, past.samples().samples)

    return made


def press(served, *keys: str) -> str:
    """What the last frame shows after these keys."""
    screen = io.StringIO()
    console = Console(file=screen, width=100, height=40, force_terminal=False)
    with find_run("tiny", served.folder.parent) as client, Live(console=console, auto_refresh=False) as live:
        Top(client, Keys(*keys), live).run(0.0)
    return screen.getvalue()


def test_one_frame_shows_the_run(show_run, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    with show_run("dead") as served:
        monkeypatch.setattr(sys, "argv", ["minichatgpt", "top", "tiny", "--once", "--runs", str(served.folder.parent)])
        with pytest.raises(SystemExit) as ended:
            main()
    shown = capsys.readouterr().out
    assert ended.value.code == 0
    assert "update 37 of 200" in shown
    assert re.search(r"reward +1\.\d+ +[▁▂▃▄▅▆▇█]{20}", shown)
    assert re.search(r"KL +\d\.\d+ .*target 6 nats/response", shown)
    assert re.search(r"add rollout\s+workers", shown)
    assert "idle 81 %, 3 queued for 0.4 s" in shown
    assert re.search(r"worker-0 +starting +– ", shown)
    assert re.search(r"worker-1 +active +1\.37 +3\.5 s +57 % +403 +413 MB +0", shown)
    assert "best   +2.10  i went to see this a fine film" in shown
    assert "11.3 nats per response is above 10" in shown


@pytest.mark.parametrize("scene", ["collect", "alarm", "dead", "long", "hostile", "sixteen", "first", "pretrain"])
def test_a_frame_fits_any_window_and_holds_nothing_that_steers_a_terminal(view_of, scene):
    view = view_of(scene)
    for width, height in ((80, 24), (132, 50), (40, 12), (20, 3)):
        shown = lines(view, width=width, height=height)
        assert len(shown) == height
        assert all(line.cell_len <= width for line in shown)
        assert all(character.isprintable() for line in shown for character in line.plain)


def test_80_by_24_has_room_for_everything(view_of):
    shown = "\n".join(line.plain for line in lines(view_of("alarm"), width=80, height=24))
    for part in ("! kl since", "reward ", "KL ", "tokens/s", "learner ", "worker-0", "best ", "worst ", "11.3 nats"):
        assert part in shown


def test_members_that_need_a_look_are_shown_where_there_is_no_room_for_all(view_of):
    shown = "\n".join(line.plain for line in lines(view_of("dead"), width=80, height=20))
    assert re.search(r"worker-0 +starting", shown)
    assert "more; make the window higher" in shown


@given(st.lists(st.none() | st.floats(-1e6, 1e6), min_size=1, max_size=60), st.integers(1, 40))
def test_a_sparkline_has_its_extremes_where_the_values_have_them(values, width):
    line = sparkline(values, width)
    shown = values[-width:]
    known = [value for value in shown if value is not None]
    assert len(line) == (len(shown) if known else 0)
    if known and min(known) < max(known):
        assert line[shown.index(max(known))] == BLOCKS[-1]
        assert line[shown.index(min(known))] == BLOCKS[0]
    assert all((block == " ") == (value is None) for block, value in zip(line, shown, strict=False))


def test_keys_reach_the_run_and_a_refusal_is_shown(show_run):
    with show_run() as served:
        assert "it stands still once the running update is done" in press(served, "p")
        press(served, "p")
        assert "5 rollout workers are asked for" in press(served, "+")
        assert "1 rollout workers are fewer than the minimum of 2" in press(served, "-", "-", "-", "-")
        assert KEYS in press(served)
    sizes = [call[1] for call in served.run.calls if call[0] == "scale"]
    assert served.run.calls[:2] == ["pause", "resume"]
    assert sizes == [5, 4, 3, 2, 1]


def test_a_run_that_ends_is_left(show_run):
    with contextlib.ExitStack() as stack:
        served = stack.enter_context(show_run())

        class Ending(Keys):
            def read(self, timeout_s: float) -> str | None:
                stack.close()  # the run ends while somebody waits for a key
                return None

        with find_run("tiny", served.folder.parent) as client:
            Top(client, Ending(), Live(console=Console(file=io.StringIO()), auto_refresh=False)).run(0.0)
            assert client.is_over()


def test_one_answer_that_fails_is_told_and_the_show_goes_on(show_run):
    with show_run() as served:
        served.run.fails_at = 2
        assert "the learner is being replaced" in press(served, "x")
        assert served.run.looks == 2


def test_a_run_that_was_set_back_is_not_shown_twice(show_run, add_update):
    with show_run() as served, find_run("tiny", served.folder.parent) as client:
        watcher = Watcher(client)
        assert [row.step for row in watcher.look().updates][-1] == 37
        add_update(served.folder, 31, "2.31")
        served.run.now = served.run.now.model_copy(update={"step": 31, "lineage": 2})
        assert [row.step for row in watcher.look().updates][-2:] == [30, 31]


def test_rows_that_were_read_while_a_run_was_set_back_do_not_stay(show_run, add_update):
    with show_run() as served, find_run("tiny", served.folder.parent) as client:
        watcher = Watcher(client)
        served.run.now = served.run.now.model_copy(update={"step": 30, "lineage": 2})
        assert watcher.look().updates[-1].step == 37, "its files are not cut back yet"
        add_update(served.folder, 31, "2.31")
        served.run.now = served.run.now.model_copy(update={"step": 31})
        assert [row.step for row in watcher.look().updates][-2:] == [30, 31]


@pytest.mark.slow
def test_in_a_terminal_ctrl_c_leaves_it_as_it_was(show_run):
    with show_run() as served:
        master, slave = pty.openpty()
        before = termios.tcgetattr(slave)
        top = subprocess.Popen(
            [sys.executable, "-m", "deploy", "top", "tiny", "--interval", "0.2", "--runs", str(served.folder.parent)],
            cwd=ROOT, stdin=slave, stdout=slave, stderr=slave, start_new_session=True,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm-256color", "COLUMNS": "100", "LINES": "30"},
        )  # fmt: skip
        try:
            seen = read_until(master, "q quit")
            assert "update 37 of 200" in seen
            assert not termios.tcgetattr(slave)[3] & termios.ICANON
            os.write(master, b"p")
            read_until(master, "paused")
            top.send_signal(signal.SIGINT)
            read_until(master, "\x1b[?1049l")
            assert top.wait(30) == 0
        finally:
            top.kill()
            top.wait(30)
        assert termios.tcgetattr(slave) == before
        assert served.run.calls == ["pause"]
        os.close(master)
        os.close(slave)


def read_until(descriptor: int, text: str, timeout_s: float = 60.0) -> str:
    """What a terminal shows until it shows a text."""
    seen = ""
    deadline = time.monotonic() + timeout_s
    while text not in seen:
        assert time.monotonic() < deadline, seen
        if select.select([descriptor], [], [], 0.2)[0]:
            seen += os.read(descriptor, 65536).decode(errors="replace")
    return seen
