"""The learner is killed, stopped, or holds corrupt weights: another one goes on from the newest verified checkpoint."""

import os
import signal

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

UPDATES = 12
SETTINGS = (f"ppo.updates={UPDATES}", "ppo.checkpoint_every=3")


def assert_workers_stayed(outcome):
    """Rollout workers and replicas stay warm: each of them began once."""
    assert sorted(text.split()[2] for text in outcome.watched.events("active")) == ["replica-0", "worker-0", "worker-1"]


def test_a_learner_that_is_killed_while_it_updates_is_replaced_as_a_new_lineage(break_a_run, undisturbed):
    def sabotage(run):
        run.await_status(lambda s: s.newest_checkpoint is not None, "a checkpoint")
        status = run.await_status(lambda s: s.phase == "update" and s.step >= 4, "an update")
        os.kill(status.learner.pid, signal.SIGKILL)
        run.await_status(lambda s: s.lineage == 1, "a new lineage")

    outcome = break_a_run(*SETTINGS, sabotage=sabotage)
    outcome.assert_whole(UPDATES)
    outcome.assert_same_bytes(undisturbed(*SETTINGS), UPDATES)
    assert_workers_stayed(outcome)
    assert outcome.ledger()["rolled_back"] >= 32
    assert {line["identity"].split(".")[0] for line in outcome.lines()} == {"0", "1"}
    assert "learner" in outcome.watched.events("learner_lost")[0]


def test_a_learner_that_is_killed_before_the_first_checkpoint_starts_from_the_policy_before_ppo(
    break_a_run, undisturbed
):
    settings = (f"ppo.updates={UPDATES}", "ppo.checkpoint_every=0")

    def sabotage(run):
        status = run.await_status(lambda s: s.phase == "update" and s.step >= 2, "an update")
        os.kill(status.learner.pid, signal.SIGKILL)

    outcome = break_a_run(*settings, sabotage=sabotage)
    outcome.assert_whole(UPDATES)
    outcome.assert_same_bytes(undisturbed(*settings), UPDATES)
    assert {line["identity"].split(".")[0] for line in outcome.lines()} == {"1"}


def test_a_learner_that_is_killed_while_it_saves_leaves_the_older_checkpoint_whole(break_a_run, undisturbed):
    def sabotage(run):
        run.await_status(lambda s: s.newest_checkpoint is not None and s.newest_checkpoint.step == 3, "a checkpoint")
        partial = run.folder / "checkpoints"
        while not list(partial.glob("step_000006.*.partial")):
            assert run.status().step < 9, "never caught"
        os.kill(run.status().learner.pid, signal.SIGKILL)

    outcome = break_a_run(*SETTINGS, sabotage=sabotage)
    outcome.assert_whole(UPDATES)
    outcome.assert_same_bytes(undisturbed(*SETTINGS), UPDATES)
    assert not list((outcome.folder / "checkpoints").glob("*.partial")), "what was begun is cleared away"


def test_a_learner_that_is_stopped_gives_no_sign_of_life_and_the_queue_stops_at_its_cap(break_a_run, undisturbed):
    fast = ("learner.heartbeat_every_s=0.5", "learner.heartbeat_timeout_s=8")
    most = []

    def sabotage(run):
        status = run.await_status(lambda s: s.phase == "update" and s.step >= 3, "an update")
        os.kill(status.learner.pid, signal.SIGSTOP)
        run.await_status(lambda s: most.append(s.ledger) or s.lineage == 1, "a new lineage")

    outcome = break_a_run(*SETTINGS, *fast, sabotage=sabotage)
    outcome.assert_whole(UPDATES)
    outcome.assert_same_bytes(undisturbed(*SETTINGS), UPDATES)
    assert max(ledger["buffered"] + ledger["in_flight"] for ledger in most) <= 32
    assert "no sign of life" in outcome.watched.events("learner_lost")[0]


def test_a_learner_that_dies_again_and_again_stops_the_run_and_names_the_checkpoint(break_a_run):
    def sabotage(run):
        killed = set()
        run.await_status(lambda s: s.newest_checkpoint is not None, "a checkpoint")
        while run.status().pools:
            status = run.status()
            if status.learner and status.learner.pid and status.learner.pid not in killed and status.phase == "update":
                killed.add(status.learner.pid)
                os.kill(status.learner.pid, signal.SIGKILL)

    outcome = break_a_run("ppo.updates=2000", "ppo.checkpoint_every=3", "learner.max_restarts=1", sabotage=sabotage)
    assert "started again 1 times within 600 s (learner.max_restarts" in str(outcome.error)
    assert "Checkpoint step_0" in outcome.error.__notes__[0]
