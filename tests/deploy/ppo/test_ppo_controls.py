"""What PPO answers to the control channel while it trains: status, scale, checkpoint."""

import os
import threading

import pytest

from common.errors import CheckpointError, ConfigError, ControlError
from deploy.control.run_status import RunStatus

EVERY_TWO = ("ppo.checkpoint_every=2", "ppo.keep_last=3")


def test_status_has_every_field(train, until):
    seen = []

    def look(controls, number):
        if number == 4:
            until(lambda: controls.status().newest_checkpoint is not None)
            seen.append(controls.status())

    outcome = train(*EVERY_TWO, "reward_service.replicas=2", before_update=look).ok()
    [status] = seen
    assert {name for name in RunStatus.model_fields if getattr(status, name) in (None, {}, ())} == {
        "stopping",  # nobody asked
        "phase",
        "phase_s",  # between two phases
        "alarms",
        "autoscaler",  # it is off
        "progress",  # of stages without updates
    }
    assert (status.run, status.pid, status.stage) == ("tiny", os.getpid(), "ppo")
    assert (status.step, status.updates, status.lineage) == (3, 6, 0)
    assert (status.ledger["dispatched"], status.ledger["trained"], status.ledger["buffered"]) == (128, 96, 32)
    assert status.newest_checkpoint.step == 2
    assert status.newest_checkpoint.url == str(outcome.folder / "checkpoints" / "step_000002")
    assert 0 <= status.newest_checkpoint.age_s < 600
    assert {role: (pool.target, pool.active) for role, pool in status.pools.items()} == {
        "rollout": (2, 2),
        "reward": (2, 2),
    }
    workers = status.pools["rollout"].members
    assert [(m.slot, m.state, m.pid, m.restarts) for m in workers] == [
        (f"worker-{i}", "active", os.getpid(), 0) for i in range(2)
    ]
    assert {m.weights for m in workers} <= {"0.2", "0.3"}
    assert all(m.calls_held == 0 and m.heartbeat_age_s >= 0 and m.last_error is None for m in workers)
    assert all(m.weights_age_s >= 0 and m.tokens_per_s > 0 and 0 < m.busy_fraction <= 1 for m in workers)
    assert all(pool.queued == pool.queue_age_s == 0 for pool in status.pools.values())
    assert status.latest == {k: v for k, v in outcome.rows()[2]["metrics"].items() if v is not None}
    total_s = outcome.rows()[2]["seconds"]["total"]
    assert status.waits.update_s == total_s
    assert status.tokens_per_s == status.latest["response_tokens"] / total_s
    assert status.waits.learner_wait_fraction == outcome.rows()[2]["seconds"]["collect"] / total_s
    assert status.waits.worker_idle_fraction == 1 - sum(m.busy_fraction for m in workers) / 2
    assert (status.learner.state, status.learner.pid, status.learner.restarts) == ("idle", os.getpid(), 0)


def test_status_says_which_phase_runs_and_for_how_long(train, monkeypatch):
    """Asked by another thread, as the control channel does."""
    from learner.service import LearnerService

    update, seen, controls_of_run = LearnerService.update, [], []

    def watched(service, payloads, settings):
        if service.step == 2:
            thread = threading.Thread(target=lambda: seen.append(controls_of_run[0].status()))
            thread.start()
            thread.join(timeout=60)
        return update(service, payloads, settings)

    monkeypatch.setattr(LearnerService, "update", watched)
    train(*EVERY_TWO, before_update=lambda controls, number: controls_of_run.append(controls)).ok()
    [status] = seen
    assert (status.step, status.phase, status.learner.state) == (2, "update", "update")
    assert status.phase_s >= 0


def test_restarts_of_the_learner_and_its_lineage_are_in_the_status(train, poison):
    seen = []
    poison(3)
    train(*EVERY_TWO, before_update=lambda controls, number: seen.append(controls.status())).ok()
    assert [(s.step, s.lineage, s.learner.restarts) for s in seen] == [
        (0, 0, 0), (1, 0, 0), (2, 0, 0), (2, 1, 1), (3, 1, 1), (4, 1, 1), (5, 1, 1)
    ]  # fmt: skip


def test_a_run_that_is_scaled_up_and_down_leaves_the_same_bytes(train, undisturbed, until):
    answers = []

    def scale(controls, number):
        match number:
            case 2:
                answers.append(controls.scale(rollout_workers=4, reward_replicas=3))
                until(lambda: [pool.active for pool in controls.status().pools.values()] == [4, 3])
            case 4:
                answers.append(controls.scale(rollout_workers=1, reward_replicas=None))
                until(lambda: len(controls.status().pools["rollout"].members) == 1)
            case 5:
                answers.append(controls.scale(rollout_workers=3, reward_replicas=1))

    outcome = train(*EVERY_TWO, before_update=scale).ok()
    outcome.assert_same_as(undisturbed(*EVERY_TWO))
    targets = [tuple(pool.target for pool in status.pools.values()) for status in answers]
    assert targets == [(4, 3), (1, 3), (3, 1)]
    texts = [text for event, text in outcome.events() if event == "scale"]
    assert texts == [
        "scale to 4 rollout workers, 3 reward replicas",
        "scale to 1 rollout workers",
        "scale to 3 rollout workers, 1 reward replicas",
    ]
    ledger = outcome.ledger()
    assert (ledger["dispatched"], ledger["duplicates"]) == (6 * 32, 0)


def test_new_members_hold_the_current_weights_before_they_get_work(train, until):
    seen = []

    def scale(controls, number):
        if number == 4:
            controls.scale(rollout_workers=5, reward_replicas=None)
            until(lambda: controls.status().pools["rollout"].active == 5)
            seen.extend(controls.status().pools["rollout"].members[2:])

    train(*EVERY_TWO, before_update=scale).ok()
    assert [(member.slot, member.weights) for member in seen] == [(f"worker-{i}", "0.3") for i in (2, 3, 4)]


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ((1, None), "1 rollout workers are fewer than the configured minimum of 2"),
        ((None, 1), "1 reward replicas are fewer than the configured minimum of 2"),
        ((4, 1), "1 reward replicas are fewer than the configured minimum of 2"),
    ],
)
def test_fewer_than_the_minimum_are_refused_and_nothing_changes(train, wanted, message):
    refused, targets = [], []

    def scale(controls, number):
        if number == 2:
            with pytest.raises(ConfigError) as error:
                controls.scale(rollout_workers=wanted[0], reward_replicas=wanted[1])
            refused.append(str(error.value))
            targets.append([pool.target for pool in controls.status().pools.values()])

    least = ("rollout.min_workers=2", "reward_service.replicas=2", "reward_service.min_replicas=2")
    train("ppo.updates=2", *least, before_update=scale).ok()
    assert message in refused[0]
    assert targets == [[2, 2]]


def test_a_checkpoint_that_is_asked_for_is_written_after_the_current_update(train, undisturbed):
    asked = []

    def ask(controls, number):
        if number == 3:
            asked.extend([controls.checkpoint(), controls.checkpoint()])

    outcome = train("ppo.checkpoint_every=0", "ppo.keep_last=3", before_update=ask).ok()
    infos = [future.result(timeout=60) for future in asked]
    assert [info.step for info in infos] == [3, 3], "who asks while one is on its way gets the same"
    assert infos[0].url == str(outcome.folder / "checkpoints" / "step_000003")
    assert outcome.checkpoints() == ["step_000003", "step_000006"]
    outcome.assert_same_as(undisturbed("ppo.checkpoint_every=0"))


def test_a_checkpoint_that_comes_to_nothing_is_told_to_who_asked(train, until):
    asked = []

    def ask(controls, number):
        if number == 3:
            until(lambda: controls.status().newest_checkpoint is not None)
            asked.append(controls.checkpoint())
            raise KeyboardInterrupt

    train(*EVERY_TWO, before_update=ask)
    with pytest.raises(CheckpointError, match=r"training has ended; the newest checkpoint is .*step_000002"):
        asked[0].result(timeout=60)


def test_once_ppo_is_over_there_is_nothing_to_steer(train):
    late = []
    train("ppo.updates=1", before_update=lambda controls, number: late.append(controls)).ok()
    assert late[0].status().pools == {}
    with pytest.raises(ControlError, match="which has no pools"):
        late[0].scale(rollout_workers=3, reward_replicas=None)
