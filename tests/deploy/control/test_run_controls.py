"""What the control channel steers: the run, and the stage that runs, while it is there."""

import os
from concurrent.futures import Future

import pytest

from common.errors import ControlError, StageEndedError
from deploy.control.run_controls import RunControls
from deploy.control.run_status import PoolStatus, RunStatus
from deploy.stop_signal import StopSignal


class TwoWorkers:
    """A stage with pools: implements `StageControls`."""

    def __init__(self, run):
        self.run = run
        self.workers = 2

    def status(self):
        facts = self.run.facts
        pools = {"rollout": PoolStatus(target=self.workers, active=2)}
        return RunStatus(run=facts.run, pid=facts.pid, started_at=facts.started_at, stage="ppo", step=3, pools=pools)

    def scale(self, *, rollout_workers, reward_replicas):
        self.workers = rollout_workers
        return self.status()

    def checkpoint(self):
        return Future()


@pytest.fixture
def run():
    return RunControls("tiny", StopSignal())


def test_status_says_which_stage_runs(run):
    assert run.status().stage is None
    with run.in_stage("sft"):
        status = run.status()
        assert (status.run, status.pid, status.stage, status.pools) == ("tiny", os.getpid(), "sft", {})
    assert run.status().stage is None


def test_a_stage_that_is_attached_answers_for_itself(run):
    with run.in_stage("ppo"), run.attached(TwoWorkers(run)):
        assert run.status().step == 3
        assert run.scale(rollout_workers=5, reward_replicas=None).pools["rollout"].target == 5
        assert run.status().pools["rollout"].target == 5
        assert not run.checkpoint().done()
    assert run.status().step is None


def test_a_stage_that_ends_while_it_is_asked_leaves_the_answer_to_the_run(run):
    class Ended(TwoWorkers):
        def status(self):
            raise StageEndedError("the pools are gone")

    with run.in_stage("ppo"), run.attached(Ended(run)):
        assert (run.status().stage, run.status().pools) == ("ppo", {})
        with pytest.raises(StageEndedError):
            run.scale(rollout_workers=5, reward_replicas=None)


@pytest.mark.parametrize("call", ["scale", "checkpoint"])
def test_a_stage_without_pools_has_nothing_to_change(run, call):
    arguments = {"rollout_workers": 3, "reward_replicas": None} if call == "scale" else {}
    with run.in_stage("sft"), pytest.raises(ControlError, match="tiny is in stage sft, which has no pools"):
        getattr(run, call)(**arguments)


def test_stop_asks_whoever_works_to_end(run):
    run.stop("out of money")
    assert (run.stop_signal.reason, run.stop_signal.exit_code) == ("out of money", 3)
    assert run.status().stopping == "out of money"
