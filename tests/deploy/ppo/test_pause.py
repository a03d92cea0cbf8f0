"""A run that stands still between two updates: what goes on meanwhile, and that nothing is different afterwards."""

import threading
import time

import pytest

from common.errors import RunStopped
from deploy.control.run_status import SettingsRequest
from deploy.exit_codes import STOPPED
from deploy.ppo.controls import PPOControls
from deploy.ppo.steering import Steering

EVERY_TWO = ("ppo.checkpoint_every=2", "ppo.keep_last=3")
DEADLINE_S = 60.0


@pytest.fixture
def operator(until):
    """An interference: while update `at` runs, a pause is asked for; once the run stands, somebody acts, elsewhere."""
    failed = []

    def build(at, act):
        started = []

        def watch(controls):
            try:
                until(lambda: controls.status().pause == "paused")
                act(controls)
            except BaseException as error:
                failed.append(error)
                controls.stop("the operator failed")

        def interfere(controls, number):
            if number == at and not started:
                started.append(threading.Thread(target=watch, args=(controls,), daemon=True))
                assert controls.pause("to look").pause == "asked"
                started[0].start()

        return interfere

    yield build
    assert not failed, failed


def test_a_paused_run_scales_saves_and_tells_and_then_goes_on_as_if_nothing_had_been(
    train, undisturbed, operator, until
):
    seen = []

    def act(controls):
        seen.append(controls.status())
        controls.scale(rollout_workers=3, reward_replicas=None)
        until(lambda: controls.status().pools["rollout"].active == 3)
        seen.extend([controls.checkpoint().result(timeout=DEADLINE_S) for _ in range(2)])
        until(lambda: controls.status().phase == "paused")
        seen.append(controls.status())
        controls.resume()

    outcome = train("ppo.checkpoint_every=0", "ppo.keep_last=3", before_update=operator(3, act)).ok()
    outcome.assert_same_as(undisturbed("ppo.checkpoint_every=0"))
    first, *saved, last = seen
    assert (first.pause, first.step, first.phase, first.ledger["in_flight"]) == ("paused", 3, "paused", 0)
    assert [info.step for info in saved] == [3, 3], "one more although the first is of the same update"
    assert (last.step, last.newest_checkpoint.step, last.pause) == (3, 3, "paused")
    rows = outcome.rows()
    assert [row["step"] for row in rows if "paused" in row["seconds"]] == [4]
    assert [event for event in outcome.events() if event[0] in ("pause", "resume")] == [
        ("pause", "pause after the running update: to look"),
        ("resume", "resumed"),
    ]
    assert outcome.registry.get_sample_value("minichatgpt_paused") == 0


def test_a_paused_run_can_be_stopped_and_the_same_command_goes_on_without_a_pause(train, undisturbed, operator):
    stopped = train(*EVERY_TWO, before_update=operator(3, lambda controls: controls.stop("enough")))
    with pytest.raises(RunStopped, match="Checkpoint step_000003 is kept") as end:
        stopped.ok()
    assert end.value.exit_code == STOPPED
    train(*EVERY_TWO).ok().assert_same_as(undisturbed(*EVERY_TWO))


def test_settings_that_are_changed_while_it_stands_count_for_the_very_next_update(train, operator):
    def act(controls):
        assert controls.change(SettingsRequest(temperature=0.5)).settings.temperature == 0.5
        controls.resume()

    rows = train("ppo.updates=4", before_update=operator(2, act)).ok().rows()
    assert [row["settings"]["temperature"] for row in rows] == [1.0, 1.0, 0.5, 0.5]


@pytest.mark.slow
def test_a_pause_outlives_a_loss_of_the_learner(train, undisturbed, operator, poison):
    """The update after which the run was to stand still never ended: it stands where it goes on from."""
    steps = []

    def act(controls):
        steps.append((controls.status().step, controls.status().lineage))
        controls.resume()

    poison(4)
    train(*EVERY_TWO, before_update=operator(4, act)).ok().assert_same_as(undisturbed(*EVERY_TWO))
    assert steps == [(2, 1)]


@pytest.mark.slow
def test_a_checkpoint_may_be_asked_for_before_the_first_update(train, undisturbed, monkeypatch, tmp_path):
    """And be gone on from: it holds the policy before PPO."""
    at, asked = Steering.at, []

    def pausing(steering, step):
        if not asked:
            steering.pause("before it begins")
            asked.append(threading.Thread(target=act, daemon=True))
            asked[0].start()
        return at(steering, step)

    def act():
        end = time.monotonic() + DEADLINE_S
        while not controls and time.monotonic() < end:
            time.sleep(0.005)
        infos.append(controls[0].checkpoint().result(timeout=DEADLINE_S))
        controls[0].resume()

    controls, infos = [], []
    build = PPOControls.__init__
    monkeypatch.setattr(
        PPOControls, "__init__", lambda self, *rest, **named: (build(self, *rest, **named), controls.append(self))[0]
    )
    monkeypatch.setattr(Steering, "at", pausing)

    def kill(controls, number):
        if number == 1:
            raise KeyboardInterrupt

    killed = train(*EVERY_TWO, before_update=kill)
    assert isinstance(killed.error, KeyboardInterrupt)
    assert [info.step for info in infos] == [0]
    assert killed.checkpoints() == ["step_000000"]
    outcome = train(*EVERY_TWO).ok()
    outcome.assert_same_as(undisturbed(*EVERY_TWO))
    assert ("resumed", "training goes on from step_000000, as lineage 1") in outcome.events()
