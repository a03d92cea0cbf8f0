"""Generation runs ahead of learning while workers, node payloads and the learner are lost: no draw is lost or trained
twice.
"""

import os
import signal

import pytest

from learner.trajectory_file import read_trajectories

pytestmark = [pytest.mark.ray, pytest.mark.slow]

UPDATES = 14
SETTINGS = (f"ppo.updates={UPDATES}", "ppo.checkpoint_every=3", "ppo.max_staleness=1")


def test_workers_and_the_learner_may_die_while_generation_is_ahead(break_a_run):
    def sabotage(run):
        run.await_step(2)
        os.kill(run.busy("worker-0").pid, signal.SIGKILL)
        run.await_status(lambda s: s.newest_checkpoint is not None, "a checkpoint")
        status = run.await_status(lambda s: s.phase == "update" and s.step >= 5, "an update")
        os.kill(status.learner.pid, signal.SIGKILL)
        run.await_status(lambda s: s.lineage == 1, "a new lineage")
        run.controls.scale(rollout_workers=3, reward_replicas=None)

    outcome = break_a_run(*SETTINGS, sabotage=sabotage)
    outcome.assert_whole(UPDATES)
    assert outcome.ledger()["rolled_back"] >= 32
    ages = [
        update - 1 - int(step)
        for update in range(1, UPDATES + 1)
        for step in read_trajectories(outcome.folder / "trajectories" / f"update_{update:06d}.safetensors")["step"]
    ]
    assert min(ages) >= 0
    assert max(ages) >= 1, "some were generated while the learner learned"
