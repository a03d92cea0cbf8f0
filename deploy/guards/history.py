"""What the guard rails saw in a run, read back from its files: for a run that goes on, and for the report afterwards.

Alarms are written down nowhere but in the log: they follow from what every update measured.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from pydantic import TypeAdapter

from common.config import RunConfig
from deploy.guards.guards import Guards, Notice
from deploy.ppo.settings_journal import Rollback
from deploy.run_folder.checked_json import read_jsonl
from deploy.run_folder.contents import UpdateLine
from deploy.run_folder.evaluation_file import EvaluationLine


def read_updates(folder: Path) -> Iterable[UpdateLine]:
    """The lines of metrics.jsonl; raises DataError if one cannot be understood."""
    return read_jsonl(folder / "metrics.jsonl", TypeAdapter(UpdateLine))


def replayed(
    config: RunConfig,
    updates: Iterable[UpdateLine],
    evaluations: Iterable[EvaluationLine],
    rollbacks: Sequence[Rollback],
    *,
    undecided: int | None = None,
) -> tuple[Guards, list[Notice]]:
    """The machine as the files of a run have made it, and the alarms that were raised and cleared on the way.

    Args:
        config: the run; its guards as they are now.
        updates: lines of metrics.jsonl, in order.
        evaluations: lines of evaluations.jsonl, in order.
        rollbacks: those of the run, in their order.
        undecided: the update after which nothing has been done yet.
    """
    guards, notices = Guards(config, [rollback.to_step for rollback in rollbacks]), list[Notice]()
    by_step = {line.step: line for line in evaluations}
    if 0 in by_step:
        notices += guards.see_evaluation(by_step[0])
    for row in updates:
        notices += see_update(guards, row)
        if row.step in by_step:
            notices += guards.see_evaluation(by_step[row.step])
        if row.step != undecided:
            guards.decide(row.step)
    return guards, notices


def see_update(guards: Guards, row: UpdateLine) -> list[Notice]:
    """Show a line of metrics.jsonl to the machine."""
    return guards.see(row.step, row.metrics, row.settings.get("kl_target"))
