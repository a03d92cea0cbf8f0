"""How a run is asked to end: the first reason stands, a second Ctrl-C is obeyed at once, handlers are put back."""

import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from common.errors import RunStopped
from deploy.stop_signal import StopSignal, handle_signals

ROOT = Path(__file__).parents[2]
LOOP = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that starts tests in the background ignores it
from deploy.stop_signal import StopSignal, handle_signals
stop = StopSignal()
with handle_signals(stop):
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(77))  # as ray.init does
    with handle_signals(stop):
        print("waiting", flush=True)
        while not stop.requested or "stubborn" in sys.argv:
            time.sleep(0.01)
            if stop.requested and "told" not in globals():
                told = print("told", flush=True)
        print(stop.reason, stop.exit_code, flush=True)
    assert signal.getsignal(signal.SIGTERM).__name__ == "<lambda>"
assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
"""


@pytest.fixture
def waiting():
    """Starts a process that waits to be stopped."""
    started = []

    def start(*arguments):
        process = subprocess.Popen(
            [sys.executable, "-c", LOOP, *arguments],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        assert process.stdout.readline() == "waiting\n"
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate(timeout=60)


@pytest.mark.parametrize(("number", "said"), [(signal.SIGINT, "Ctrl-C 130"), (signal.SIGTERM, "SIGTERM 143")])
def test_a_signal_asks_for_the_end_even_after_a_library_took_it(waiting, number, said):
    process = waiting()
    process.send_signal(number)
    shown, errors = process.communicate(timeout=60)
    assert shown.splitlines()[-1] == said
    assert (process.returncode, errors) == (0, "")


def test_a_second_ctrl_c_is_obeyed_at_once(waiting):
    process = waiting("stubborn")
    process.send_signal(signal.SIGINT)
    assert process.stdout.readline() == "told\n"
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert "KeyboardInterrupt" in errors
    assert process.returncode == -signal.SIGINT


def test_a_second_sigterm_changes_nothing(waiting):
    process = waiting("stubborn")
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "told\n"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)


def test_ctrl_c_twice_is_counted_across_both_contexts():
    stop = StopSignal()
    with handle_signals(stop):
        signal.raise_signal(signal.SIGINT)
        with handle_signals(stop), pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    assert stop.reason == "Ctrl-C"


def test_nobody_asked_at_first():
    stop = StopSignal()
    assert (stop.requested, stop.reason, stop.exit_code, stop.seconds_since()) == (False, None, 0, 0.0)
    stop.raise_if_requested()


def test_the_first_reason_stands():
    stop = StopSignal()
    stop.request("out of money", 3)
    stop.request("SIGTERM", 143)
    with pytest.raises(RunStopped, match=r"^stopped \(out of money\); finished stages are kept") as raised:
        stop.raise_if_requested()
    assert (raised.value.reason, raised.value.exit_code) == ("out of money", 3)
    assert stop.seconds_since() > 0


def test_of_many_who_ask_at_once_one_is_first_for_good():
    stop = StopSignal()
    everybody = threading.Barrier(8)
    seen = []

    def ask(name):
        everybody.wait(60)
        stop.request(name, 3)
        seen.append(stop.reason)

    threads = [threading.Thread(target=ask, args=(f"thread {i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(seen) == 8
    assert set(seen) == {stop.reason}


def test_a_failure_inside_puts_the_handlers_back():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), handle_signals(StopSignal()):
        raise KeyError
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


def test_other_threads_leave_the_handlers_alone():
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def enter():
        with handle_signals(StopSignal()):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join(60)
    assert seen == [before]
