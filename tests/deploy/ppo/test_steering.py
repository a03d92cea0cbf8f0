"""Orders between two updates, by hand: a loop that is here and there, and what it finds."""

import threading

import pytest

from common.errors import DataError
from common.ppo_config import PPOConfig
from deploy.control.run_status import SettingsRequest
from deploy.ppo.brake import Brake
from deploy.ppo.settings_journal import read_journal
from deploy.ppo.steering import Steering, open_journal
from deploy.stop_signal import StopSignal
from deploy.stopwatch import Stopwatch

CONFIG = PPOConfig(data=["texts"], updates=9)


class Drive:
    """Steering of a run of 10 prompts an update, without anything that it steers."""

    def __init__(self, folder):
        self.folder, self.draw, self.notes, self.changed = folder, 0, [], []
        brake = Brake(watch=Stopwatch(), stop=StopSignal(), is_asked=lambda: False, save=lambda: None,
                      told=lambda stands: None)  # fmt: skip
        self.steering = Steering(
            CONFIG, open_journal(CONFIG, folder, self.note), folder / "steering.json", brake=brake, step=0,
            draw=lambda: self.draw, lineage=lambda: 0, told=self, note=self.note,
        )  # fmt: skip

    def note(self, event, text):
        self.notes.append((event, text))

    def settings(self, settings):
        """As RunMetrics has it."""

    def setting_changed(self, name):
        self.changed.append(name)

    def update(self, step, *, draw=None):
        self.draw = 10 * step if draw is None else draw
        return self.steering.at(step).learning_rate

    def order(self, rate, **how):
        self.steering.change(SettingsRequest(learning_rate=rate), **how)


@pytest.fixture
def drive(tmp_path):
    return Drive(tmp_path)


def test_an_order_during_an_update_counts_for_the_next_one_and_is_on_disk_at_once(drive, tmp_path):
    assert drive.update(0) == 1e-4
    drive.order(5e-5)
    assert drive.steering.in_force.learning_rate == 1e-4
    assert drive.steering.settings.learning_rate == 5e-5
    assert read_journal(tmp_path).in_force(1).learning_rate == 5e-5
    assert [drive.update(step) for step in (1, 2)] == [5e-5, 5e-5]
    assert [drive.steering.settings_at(step).learning_rate for step in (0, 1)] == [1e-4, 5e-5]


def test_two_orders_during_one_update_both_hold(drive):
    drive.update(0)
    drive.order(5e-5)
    drive.steering.change(SettingsRequest(temperature=0.5))
    drive.update(1)
    assert (drive.steering.in_force.learning_rate, drive.steering.in_force.temperature) == (5e-5, 0.5)


def test_an_order_after_the_learner_was_lost_counts_for_the_update_that_training_goes_on_with(drive):
    for step in range(4):
        drive.update(step)
    drive.steering.go_back_to(2)
    drive.order(5e-5)
    assert [drive.update(step) for step in (2, 3)] == [5e-5, 5e-5]


def test_an_order_that_changes_nothing_is_said_to_and_is_not_in_the_journal(drive, tmp_path):
    drive.update(0)
    drive.order(1e-4)
    drive.steering.resume()
    assert read_journal(tmp_path) is None
    assert drive.changed == []
    assert drive.notes == [
        ("control", "nothing changes: learning_rate is 0.0001 already"),
        ("control", "nothing changes: the run is not paused"),
    ]


def test_an_order_that_cannot_be_written_down_is_an_error_and_changes_nothing(drive, tmp_path):
    drive.update(0)
    (tmp_path / "steering.json").mkdir()
    with pytest.raises(DataError, match=r"steering\.json cannot be written"):
        drive.order(5e-5)
    assert drive.update(1) == 1e-4
    assert drive.changed == []


def test_an_order_between_two_updates_counts_for_the_one_that_follows(drive, tmp_path):
    """As a guard rail gives it, in the loop's own thread."""
    for step in range(3):
        drive.update(step)
    drive.order(5e-5, who="guard", reason="kl")
    assert drive.update(3) == 5e-5
    [change] = read_journal(tmp_path).changes
    assert (change.at_step, change.who, change.reason) == (3, "guard", "kl")
    assert drive.notes == [("settings", "from update 4 on: learning_rate 0.0001 to 5e-05 (guard: kl)")]


def test_over_a_rollback_settings_and_even_an_order_of_just_now_are_kept(drive, tmp_path):
    for step in range(4):
        drive.update(step)
    drive.order(5e-5)
    drive.update(4)
    drive.order(2e-5)
    drive.draw = 50
    drive.steering.roll_back_to(2, "kl is too high", next_draw_index=drive.draw)
    assert drive.update(2, draw=50) == 2e-5
    journal = read_journal(tmp_path)
    [rollback] = journal.rollbacks
    assert (rollback.to_step, rollback.from_step, rollback.next_draw_index) == (2, 5, 50)
    assert [change.at_step for change in journal.dead] == [4, 5]
    assert [(change.at_step, change.who) for change in journal.changes] == [(2, "guard")]
    assert [journal.in_force(step).learning_rate for step in (1, 2, 5)] == [1e-4, 2e-5, 2e-5]


def test_orders_from_many_threads_are_all_kept(drive, tmp_path):
    """Each changes another setting, while the loop goes on: none is lost, and the file is whole."""
    orders = [SettingsRequest(temperature=0.5), SettingsRequest(learning_rate=5e-5), SettingsRequest(kl_coef=0.3)]
    threads = [threading.Thread(target=drive.steering.change, args=(order,)) for order in orders]
    for step, thread in enumerate(threads):
        drive.update(step)
        thread.start()
    for thread in threads:
        thread.join(60)
    drive.update(3)
    assert drive.steering.in_force.present() == {"temperature": 0.5, "learning_rate": 5e-5, "kl_coef": 0.3}
    assert read_journal(tmp_path) == drive.steering.journal
    assert sorted(drive.changed) == ["kl_coef", "learning_rate", "temperature"]
