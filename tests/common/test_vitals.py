"""A process can be asked where it hangs and how much it holds."""

import mmap
import threading

import numpy as np

from common.vitals import rss_bytes, stacks


def wait_in_a_place_of_its_own(entered: threading.Event, leave: threading.Event) -> None:
    entered.set()
    leave.wait()


def test_stacks_show_where_another_thread_waits():
    entered, leave = threading.Event(), threading.Event()
    thread = threading.Thread(target=wait_in_a_place_of_its_own, args=(entered, leave), name="the one that hangs")
    thread.start()
    entered.wait(timeout=60)
    shown = stacks()
    leave.set()
    thread.join(timeout=60)
    later = stacks()
    parts = shown.split("\n\n")
    assert any(p.startswith("thread the one that hangs:") and "in wait_in_a_place_of_its_own" in p for p in parts)
    assert any(p.startswith("thread MainThread (asks):") and "in stacks" in p for p in parts)
    assert "in wait_in_a_place_of_its_own" not in later, "a thread that has ended is not shown"


def test_rss_grows_with_what_is_held():
    before = rss_bytes()
    with mmap.mmap(-1, 50_000_000) as held:  # never memory that this process freed before and kept
        np.frombuffer(held, dtype=np.uint8)[:] = 1
        after = rss_bytes()
    assert before > 1_000_000
    assert 40_000_000 < after - before < 200_000_000
