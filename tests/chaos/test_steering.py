"""A live run on Ray is paused, changed, let go on, changed again; then its learner is killed before any checkpoint."""

import io
import os
import shutil
import signal

import pytest
from rich.console import Console

from deploy.control.run_status import SettingsRequest
from deploy.local import LocalRuntime
from deploy.pipeline import Pipeline
from deploy.ppo.settings_journal import read_journal

pytestmark = [pytest.mark.ray, pytest.mark.slow]

UPDATES = 14
SETTINGS = (f"ppo.updates={UPDATES}", "ppo.checkpoint_every=0")


@pytest.fixture
def with_the_same_changes(tiny, tiny_run, tmp_path):
    """The run in one process, undisturbed, that finds the changes of another run in its folder."""

    def run(other):
        folder = tmp_path / "same"
        left = ("checkpoints", "ledger.json", "ppo.json", "metrics.jsonl", "trajectories")
        shutil.copytree(tiny_run, folder, ignore=shutil.ignore_patterns(*left))
        shutil.copy(other / "steering.json", folder)
        config = tiny(*SETTINGS).model_copy(update={"evaluate": None})
        Pipeline(config, folder, start_runtime=LocalRuntime, console=Console(file=io.StringIO(), width=200)).run()
        return folder

    return run


def test_a_run_that_is_steered_and_whose_learner_is_killed_leaves_the_bytes_of_a_local_one_with_the_same_changes(
    break_a_run, undisturbed, with_the_same_changes
):
    seen = []

    def sabotage(run):
        run.await_step(2)
        run.controls.pause("to look")
        paused = run.await_status(lambda s: s.pause == "paused", "it stands still")
        run.controls.change(SettingsRequest(temperature=0.7, reason="while it stands"))
        run.controls.scale(rollout_workers=3, reward_replicas=None)
        run.await_status(lambda s: s.pools["rollout"].active == 3, "a third worker")
        seen.append((paused.step, run.status().step))
        run.controls.resume()
        run.await_step(paused.step + 2)
        run.controls.change(SettingsRequest(learning_rate=5e-4, reason="while it runs"))
        changed_at = run.status().step
        status = run.await_status(lambda s: s.phase == "update" and s.step > changed_at + 1, "an update")
        os.kill(status.learner.pid, signal.SIGKILL)
        run.await_status(lambda s: s.lineage == 1, "a new lineage")

    outcome = break_a_run(*SETTINGS, sabotage=sabotage)
    outcome.assert_whole(UPDATES)
    assert {line["identity"].split(".")[0] for line in outcome.lines()} == {"1"}, "all was done again"
    [(paused_at, still_at)] = seen
    assert paused_at == still_at
    first, second = read_journal(outcome.folder).changes
    assert first.at_step == paused_at
    settings = [(line["settings"]["temperature"], line["settings"]["learning_rate"]) for line in outcome.lines()]
    assert settings == (
        [(1.0, 1e-3)] * first.at_step
        + [(0.7, 1e-3)] * (second.at_step - first.at_step)
        + [(0.7, 5e-4)] * (UPDATES - second.at_step)
    )
    same = with_the_same_changes(outcome.folder)
    outcome.assert_same_bytes(same, UPDATES)
    with pytest.raises(AssertionError):
        outcome.assert_same_bytes(undisturbed(*SETTINGS), UPDATES)
