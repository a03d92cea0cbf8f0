"""How far a supervised stage is and how long it will take, on a clock that the test moves."""

from types import SimpleNamespace

import pytest
from rich.console import Console

from deploy.control.pace import Pace
from deploy.control.run_controls import RunControls
from deploy.control.run_status import RunStatus, StageProgress
from deploy.control.view import print_status, stage_progress
from deploy.progress import stage_bar
from deploy.stop_signal import StopSignal


@pytest.fixture
def timed():
    clock = SimpleNamespace(now=100.0)
    return clock, Pace(lambda: clock.now)


def test_what_is_left_follows_from_the_pace_since_the_work_began(timed):
    clock, pace = timed
    assert pace.progress() is None
    pace.show(0, 1, "reading texts")
    clock.now += 50
    pace.show(1, 40, "loss 5.0")
    assert pace.progress().left_s is None, "reading took long, and says nothing of training"
    clock.now += 9
    pace.show(4, 40, "loss 4.0")
    assert pace.progress() == StageProgress(step=4, total=40, message="loss 4.0", left_s=108.0)
    clock.now += 8
    assert pace.progress().left_s == 100.0
    clock.now += 500
    assert pace.progress().left_s == 0.0, "late, and no less than nothing"
    pace.show(40, 40, "loss 1.0")
    assert pace.progress().left_s == 0.0


def test_the_status_of_a_run_tells_it_while_the_stage_lasts(timed):
    controls = RunControls("demo", StopSignal())
    assert controls.status().progress is None
    with controls.in_stage("sft"), stage_bar(Console(), "sft", controls.progress) as show:
        show(3, 12, "loss 3.61")
        status = RunStatus.model_validate_json(controls.status().model_dump_json())
        assert (status.stage, status.step) == ("sft", None)
        assert (status.progress.step, status.progress.total, status.progress.message) == (3, 12, "loss 3.61")
    with controls.in_stage("judge"):
        assert controls.status().progress is None, "of the stage before"


def test_it_is_shown_in_a_line():
    progress = StageProgress(step=1300, total=5200, message="loss \x1b[2J3.61", left_s=187.0)
    line = stage_progress(progress)
    assert line.startswith("1,300 of 5,200 steps · 25% · loss ")
    assert line.endswith(" · about 3 min 07 s left")
    assert "\x1b" not in line
    console = Console(width=120, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    status = RunControls("demo", StopSignal()).status().model_copy(update={"stage": "sft", "progress": progress})
    print_status(status, console)
    assert "1,300 of 5,200 steps" in console.export_text()
