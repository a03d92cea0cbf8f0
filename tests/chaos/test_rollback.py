"""A guard rail goes back to a checkpoint on Ray, with workers and learner as they are, and breaks meanwhile."""

import os
import signal

import numpy as np
import pytest

from deploy.ppo.settings_journal import read_journal
from learner.trajectory_file import read_trajectories

pytestmark = [pytest.mark.ray, pytest.mark.slow]

BATCH, UPDATES = 32, 6
SETTINGS = (
    f"ppo.updates={UPDATES}",
    "ppo.checkpoint_every=2",
    "ppo.keep_last=9",
    "ppo.optimizer.lr=0.004",
    "ppo.lr_warmup_updates=5",
    "guards.kl.max_nats=1.7",
    "guards.kl.patience_updates=1",
    "guards.kl.action=roll_back",
)
"""The KL of update 5 is 2.8 nats after 0.9 on any machine: it goes on from update 2 with the prompts after update 5."""


def assert_rolled_back(outcome, undisturbed):
    assert outcome.error is None, outcome.error
    outcome.assert_same_bytes(undisturbed(*SETTINGS), UPDATES)
    [rollback] = read_journal(outcome.folder).rollbacks
    assert (rollback.from_step, rollback.to_step, rollback.next_draw_index) == (5, 2, 5 * BATCH)
    files = sorted((outcome.folder / "trajectories").iterdir())
    draws = np.concatenate([read_trajectories(file)["draw_index"] for file in files])
    assert sorted(draws) == [*range(2 * BATCH), *range(5 * BATCH, 9 * BATCH)]
    ledger = outcome.ledger()
    assert (ledger["trained"], ledger["buffered"], ledger["in_flight"]) == (UPDATES * BATCH, 0, 0)
    assert ledger["dispatched"] == ledger["trained"] + ledger["rolled_back"]
    active = [text.split()[2] for text in outcome.watched.events("active")]
    assert sorted(active) == ["replica-0", "worker-0", "worker-1"], "each of them began once"


def test_a_rollback_on_ray_leaves_the_same_as_in_one_process_and_restarts_nobody(break_a_run, undisturbed):
    restarts, pids = [], set()

    def watch(run):
        pids.add(run.await_step(1).learner.pid)
        status = run.await_status(lambda s: s.rollbacks == 1 and s.lineage == 1 and s.step >= 3, "a rollback")
        restarts.append(status.learner.restarts)
        pids.add(status.learner.pid)

    outcome = break_a_run(*SETTINGS, sabotage=watch)
    assert_rolled_back(outcome, undisturbed)
    assert outcome.ledger()["rolled_back"] == 3 * BATCH
    assert (restarts, len(pids)) == ([0], 1), "the learner is the same process, and its restart budget is whole"


def test_a_learner_that_is_killed_right_after_a_rollback_does_not_put_the_prompts_back(break_a_run, undisturbed):
    def kill(run):
        status = run.await_status(lambda s: s.lineage == 1 and s.step == 3 and s.phase == "collect", "an update")
        os.kill(status.learner.pid, signal.SIGKILL)
        run.await_status(lambda s: s.lineage == 2, "a new lineage")

    outcome = break_a_run(*SETTINGS, sabotage=kill)
    assert_rolled_back(outcome, undisturbed)
    assert outcome.watched.events("learner_lost")
