"""The loop stands still and goes on, whoever pulls and releases the brake, and when."""

import random
import threading
import time

import pytest

from common.errors import CheckpointError, RunStopped
from deploy.ppo.brake import Brake
from deploy.stop_signal import StopSignal
from deploy.stopwatch import Stopwatch

DEADLINE_S = 60.0


def until(condition):
    end = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < end, f"not within {DEADLINE_S:.0f} s"
        time.sleep(0.002)


class Car:
    """A brake, and a loop in a thread that passes it again and again."""

    def __init__(self):
        self.watch, self.stop = Stopwatch(), StopSignal()
        self.told, self.saves, self.asked, self.rounds = [], 0, 0, 0
        self.fails = self.error = None
        self.brake = Brake(watch=self.watch, stop=self.stop, is_asked=lambda: self.asked > 0, save=self._save,
                           told=self.told.append)  # fmt: skip
        self._ends = threading.Event()
        self._thread = threading.Thread(target=self._loop, daemon=True)

    def _save(self):
        if self.fails is not None:
            raise self.fails
        self.asked, self.saves = 0, self.saves + 1

    def _loop(self):
        try:
            while not self._ends.is_set():
                self.brake.hold()
                self.rounds += 1
                time.sleep(0)
        except (RunStopped, CheckpointError) as error:
            self.error = error

    def start(self):
        self._thread.start()
        return self

    def end(self):
        self._ends.set()
        self.brake.release()
        self._thread.join(DEADLINE_S)
        assert not self._thread.is_alive()


@pytest.fixture
def car():
    made = Car().start()
    yield made
    made.end()


def stands(car):
    until(lambda: car.brake.state == "paused")


def test_it_stands_until_it_is_released_and_goes_on(car):
    assert car.brake.pause()
    stands(car)
    rounds = car.rounds
    assert not car.brake.pause(), "once is enough"
    assert car.watch.running()[0] == "paused"
    assert car.brake.release()
    until(lambda: car.rounds > rounds)
    assert not car.brake.release()
    assert car.watch.take()["paused"] > 0
    assert car.told == [True, False]


def test_a_checkpoint_that_is_asked_for_is_written_while_it_stands(car):
    car.brake.pause()
    stands(car)
    rounds = car.rounds
    for number in (1, 2):
        car.asked = 1
        until(lambda number=number: car.saves == number)
    stands(car)
    assert car.rounds == rounds


def test_without_a_pause_the_brake_writes_no_checkpoint(car):
    car.asked = 1
    rounds = car.rounds
    until(lambda: car.rounds > rounds + 10)
    assert car.saves == 0, "that is for after an update"
    assert car.told == []


def test_the_end_is_not_waited_for_and_a_loop_that_begins_again_stands_again(car):
    car.brake.pause()
    stands(car)
    car.stop.request("enough", 3)
    until(lambda: car.error is not None)
    assert isinstance(car.error, RunStopped)
    assert car.brake.state == "asked"
    assert car.told == [True, False]


def test_a_checkpoint_that_cannot_be_written_is_the_loops_error(car):
    car.fails = CheckpointError("two in a row")
    car.brake.pause()
    stands(car)
    car.asked = 1
    until(lambda: car.error is not None)
    assert car.brake.state == "asked"


def test_whoever_pulls_and_releases_in_whatever_order_the_last_word_counts(car):
    """Four threads at once, then one word: the loop always obeys it."""

    def fiddle(seed):
        chance = random.Random(seed)
        for _ in range(200):
            chance.choice([car.brake.pause, car.brake.release])()

    for round_number in range(5):
        threads = [threading.Thread(target=fiddle, args=(4 * round_number + i,)) for i in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(DEADLINE_S)
        car.brake.pause()
        stands(car)
        rounds = car.rounds
        car.brake.release()
        until(lambda rounds=rounds: car.rounds > rounds)
    assert car.told[::2] == [True] * (len(car.told) // 2)
    assert car.told[1::2] == [False] * (len(car.told) // 2)
