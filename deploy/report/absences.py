"""Why a run has not recorded something, in words: a stage that is not in its configuration, or a PPO that was stopped.

Shared by the page and the terminal.
"""

import tomllib
from collections.abc import Mapping, Sequence
from typing import Any, Final

from deploy.report.words import Measure
from deploy.run_folder.address import read_end
from deploy.run_folder.contents import RunFiles

WHY_ABSENT: Final = {
    "sft": "the sft stage was not part of the config",
    "reward_model": "the reward_model stage was not part of the config",
    "judge": "no judge was part of the config",
    "scorers": "the reward model is not among the scorers",
    "ppo": "the ppo stage was not part of the config, or has not finished an update",
    "evaluate": "the evaluate stage was not part of the config, or has not finished",
}
"""By the stage that measures it, where PPO was not broken off."""


def why_absent(run: RunFiles) -> dict[str, str]:
    """The likely reason by stage: a PPO that has not come to its end explains what was to come after it."""
    broken_off = ppo_broken_off(run)
    if not broken_off:
        return dict(WHY_ABSENT)
    config = _config(run)
    later = [stage for stage in ("judge", "evaluate") if stage in config]
    return WHY_ABSENT | dict.fromkeys(later, broken_off)


def ppo_broken_off(run: RunFiles) -> str:
    """How far PPO came, where it has begun and not come to its end; else empty."""
    ppo = _config(run).get("ppo")
    wanted = ppo.get("updates") if isinstance(ppo, dict) else None
    if wanted is None or not run.updates or any(stage.stage == "ppo" for stage in run.stages):
        return ""
    done = run.updates[-1].step
    if read_end(run.folder) is None:
        return f"PPO has done {done:,} of {wanted:,} updates"
    return f"PPO was stopped after update {done:,} of {wanted:,}"


def absences(rows: Sequence[Measure], why: Mapping[str, str]) -> list[str]:
    """A sentence on each reason for which rows are absent, with these rows."""
    by_reason: dict[str, list[str]] = {}
    for row in rows:
        if row.is_absent:
            by_reason.setdefault(why[row.stage], []).append(row.label)
    return [f"{', '.join(labels)}: not recorded; {reason}." for reason, labels in by_reason.items()]


def _config(run: RunFiles) -> dict[str, Any]:
    return {} if run.config_text is None else tomllib.loads(run.config_text)
