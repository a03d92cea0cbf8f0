"""Rollout workers and reward replicas are killed, stopped, scaled; the run goes on, and leaves the same bytes."""

import os
import signal
import time

import psutil
import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

UPDATES = 12
SETTINGS = (f"ppo.updates={UPDATES}", "ppo.checkpoint_every=4")
FAST_HEART = ("rollout.heartbeat_every_s=0.5", "rollout.heartbeat_timeout_s=5")


def kill(pid, number=signal.SIGKILL):
    os.kill(pid, number)


def test_a_worker_that_is_killed_while_it_generates_is_replaced_and_nothing_is_lost(break_a_run, undisturbed, poll):
    def sabotage(run):
        run.await_step(2)
        worker = run.busy("worker-0")
        kill(worker.pid)
        run.await_status(lambda s: run.member(s, "worker-0").restarts == 1, "the death is noticed")
        run.await_status(lambda s: run.member(s, "worker-0").state == "active" or s.step == UPDATES, "a new life")

    outcome = break_a_run(*SETTINGS, sabotage=sabotage)
    outcome.assert_whole(UPDATES)
    outcome.assert_same_bytes(undisturbed(*SETTINGS), UPDATES)
    (text,) = outcome.watched.events("restart")
    for part in ("rollout", "worker-0", "generate", "SIGKILL"):
        assert part in text


def test_the_last_worker_may_die_too(break_a_run, undisturbed):
    def sabotage(run):
        run.await_step(1)
        kill(run.busy("worker-0").pid)

    outcome = break_a_run(*SETTINGS, "rollout.workers=1", sabotage=sabotage)
    outcome.assert_whole(UPDATES)
    outcome.assert_same_bytes(undisturbed(*SETTINGS), UPDATES)


def test_a_replica_that_is_killed_while_it_scores_is_replaced_and_proves_itself(break_a_run, undisturbed):
    def sabotage(run):
        run.await_step(2)
        kill(run.busy("replica-0").pid)

    outcome = break_a_run(*SETTINGS, sabotage=sabotage)
    outcome.assert_whole(UPDATES)
    outcome.assert_same_bytes(undisturbed(*SETTINGS), UPDATES)
    assert "replica-0" in outcome.watched.events("restart")[0]
    assert len([text for text in outcome.watched.events("active") if "replica-0" in text]) == 2


def test_a_worker_that_is_stopped_gives_no_sign_of_life_and_is_replaced_alone(break_a_run, undisturbed, poll):
    pids = {}

    def sabotage(run):
        run.await_step(2)
        pids["stopped"] = run.busy("worker-0").pid
        kill(pids["stopped"], signal.SIGSTOP)
        poll(lambda: not psutil.pid_exists(pids["stopped"]), what="the stopped process is gone")
        status = run.await_status(lambda s: run.member(s, "worker-0").restarts == 1, "it is replaced")
        assert run.member(status, "worker-1").restarts == 0

    outcome = break_a_run(*SETTINGS, *FAST_HEART, sabotage=sabotage)
    outcome.assert_whole(UPDATES)
    outcome.assert_same_bytes(undisturbed(*SETTINGS), UPDATES)
    assert "no sign of life" in outcome.watched.events("restart")[0]


def test_one_four_one_while_training(break_a_run, undisturbed):
    updates = 40
    settings = (f"ppo.updates={updates}", "ppo.checkpoint_every=20")

    def sabotage(run):
        run.await_step(2)
        run.controls.scale(rollout_workers=4, reward_replicas=2)
        run.await_status(lambda s: s.pools["rollout"].active == 4 and s.pools["reward"].active == 2, "four workers")
        step = run.status().step
        run.await_step(step + 2)
        held = {m.weights for m in run.status().pools["rollout"].members}
        assert all(w and int(w.split(".")[1]) >= step - 1 for w in held), "admitted with current weights"
        run.controls.scale(rollout_workers=1, reward_replicas=1)
        status = run.await_status(lambda s: len(s.pools["rollout"].members) == 1, "one worker")
        assert status.step < updates, "while it trains"

    outcome = break_a_run(*settings, "rollout.workers=1", sabotage=sabotage)
    outcome.assert_whole(updates)
    outcome.assert_same_bytes(undisturbed(*settings), updates)
    assert outcome.ledger()["duplicates"] == 0


def test_a_worker_that_dies_again_and_again_stops_the_run_with_a_checkpoint_and_the_reason(break_a_run, undisturbed):
    def sabotage(run):
        run.await_step(3)
        killed = set()
        end = time.monotonic() + 120
        while time.monotonic() < end:
            status = run.status()
            members = status.pools["rollout"].members if status.pools else ()
            for member in members:
                if member.pid and member.pid not in killed and member.state == "active":
                    killed.add(member.pid)
                    kill(member.pid)
            if not status.pools:
                return
            time.sleep(0.05)

    settings = ("ppo.updates=2000", "ppo.checkpoint_every=0")
    outcome = break_a_run(*settings, "rollout.workers=1", "rollout.max_restarts=1", sabotage=sabotage)
    assert "the rollout pool has 0 members left and needs 1" in str(outcome.error)
    assert "after 1 restarts within 600 s" in str(outcome.error)
    (note,) = outcome.error.__notes__
    step = outcome.lines()[-1]["step"]
    assert f"Stopped after update {step} of 2000. Checkpoint step_{step:06d} is kept" in note
    shorter = (f"ppo.updates={step + 2}", "ppo.checkpoint_every=0")
    resumed = break_a_run(*shorter)
    resumed.assert_whole(step + 2)
    resumed.assert_same_bytes(undisturbed(*shorter), step + 2)
