"""A worker and a replica are killed while held-out prompts are evaluated; evaluations and training stay the same."""

import json
import os
import signal

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

UPDATES = 6
TRAINING = (f"ppo.updates={UPDATES}", "ppo.checkpoint_every=2")
SETTINGS = (*TRAINING, "evaluate.every_updates=1")


def lines_of(folder):
    rows = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


def test_who_dies_in_an_evaluation_is_replaced_and_it_is_done_once(break_a_run, undisturbed):
    killed = []

    def sabotage(run):
        for slot in ("worker-0", "replica-0"):
            status = run.await_status(
                lambda s, slot=slot: s.phase == "evaluate" and run.member(s, slot).calls_held > 0, f"{slot} evaluates"
            )
            os.kill(run.member(status, slot).pid, signal.SIGKILL)
            killed.append(slot)
            run.await_status(lambda s, slot=slot: run.member(s, slot).restarts == 1, f"the death of {slot} is noticed")

    whole = break_a_run(*SETTINGS, name="whole")
    outcome = break_a_run(*SETTINGS, sabotage=sabotage)
    assert killed == ["worker-0", "replica-0"]
    outcome.assert_whole(UPDATES)
    outcome.assert_same_bytes(undisturbed(*TRAINING), UPDATES)
    assert [line["step"] for line in lines_of(outcome.folder)] == list(range(UPDATES + 1))
    assert lines_of(outcome.folder) == lines_of(whole.folder)
