"""What a run folder holds of PPO's updates, looked up for a replay: reads, and changes nothing.

Used by `replay/replay.py`. Which updates that suffices for is decided in `replay/plan.py`.
"""

import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from common.checkpoint import Checkpoint
from common.config import RunConfig
from common.errors import ConfigError, DataError
from common.run_settings import RunSettings
from deploy.fingerprint import folder_hash
from deploy.ppo.resume import learner_settings
from deploy.ppo.settings_journal import read_journal
from deploy.replay.plan import Plan, Start, plan
from deploy.run_folder.files import read_json
from deploy.run_folder.history import RunHistory, UpdateRow
from deploy.run_folder.models import STAGE_OF, RunModels

_TRAJECTORIES = re.compile(r"update_(\d+)\.safetensors")


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """Updates of a run, and from where they can be recomputed."""

    folder: Path
    config: RunConfig
    policy: str
    """Folder or hub name of the policy with which PPO began."""
    rows: Mapping[int, UpdateRow]
    """By update."""
    checkpoints: Mapping[int, Checkpoint]
    """Of the weights on record, by update."""
    plan: Plan

    def settings(self, update: int) -> RunSettings:
        """In force at an update."""
        assert self.config.ppo is not None, "checked when the run was opened"
        journal = read_journal(self.folder)
        return RunSettings.of(self.config.ppo) if journal is None else journal.in_force(update - 1)


def open_recorded(folder: Path, *, from_step: int | None = None) -> RecordedRun:
    """Look at a run folder.

    Args:
        folder: of the run.
        from_step: begin with the newest checkpoint up to this update; None: the newest before each update.

    Raises:
        ConfigError: the run has no PPO, or its config.toml is not the one that its checkpoints were written with.
        DataError: the policy with which PPO began is gone or was changed.
    """
    models = RunModels(folder)
    config = models.config
    if config.ppo is None:
        raise ConfigError(f"{folder} is a run without [ppo]: it has no updates")
    store = models.store()
    kept = store.checkpoints()
    state: dict[str, Any] = dict(store.read_state(kept[-1])) if kept else {"settings": {}}
    saved = state["settings"]
    policy = models.path(models.name_before_ppo)
    found = folder_hash(Path(policy)) if Path(policy).is_dir() else policy
    expected = saved.get("inputs.policy") or _policy_of_stages(models)
    if expected is not None and found != expected:
        raise DataError(
            f"{policy} is not the policy with which PPO began, for its hash is {found} and was {expected}; put the "
            "old one back to replay"
        )
    _refuse_other_settings(folder, saved, learner_settings(config, found))
    rows = {row.step: row for row in RunHistory(folder).updates(limit=sys.maxsize).updates}
    identities = {step: row.identity for step, row in rows.items()}
    beginning = Start(0, 0, f"the policy before PPO ({policy})")
    starts = [Start(one.step, one.lineage, one.name, one.url) for one in kept]
    planned = plan(identities, _recorded(folder), starts, beginning=beginning, from_step=from_step)
    planned = replace(planned, notes=(*planned.notes, *_gone(folder, rows)))
    living = {one.step: one for one in kept if identities.get(one.step) == f"{one.lineage}.{one.step}"}
    return RecordedRun(folder, config, policy, rows, living, planned)


def _gone(folder: Path, rows: Mapping[int, UpdateRow]) -> list[str]:
    """What happened in the run and is on no record that could be replayed."""
    journal = read_journal(folder)
    rollbacks = () if journal is None else journal.rollbacks
    notes = [
        f"a guard rail went back from update {one.from_step} to {one.to_step}: what came between left nothing, and "
        "later updates are those that were done instead"
        for one in rollbacks
    ]
    lineages = max((int(row.identity.split(".")[0]) for row in rows.values()), default=0)
    if (times := lineages - len(rollbacks)) > 0:  # less than 0: no update was done yet after the last rollback
        notes.append(
            f"the run went on from a checkpoint, or from its start, after {times} interruption{'s' * (times > 1)}: of "
            "updates that were done again, the last time is on record"
        )
    events = RunHistory(folder).events(limit=sys.maxsize).events
    if count := sum(event.event == "nonfinite_update" for event in events):
        notes.append(
            f"{count} update{'s' * (count > 1)} had no finite step and changed nothing: what came instead is on record"
        )
    return notes


def _policy_of_stages(models: RunModels) -> str | None:
    """Its hash by the records of the stages; None where no stage has made it and PPO is not done."""
    stages = models.folder / "stages"
    if (stages / "ppo.json").is_file():
        return str(read_json(stages / "ppo.json")["inputs"]["policy"])
    path = stages / f"{STAGE_OF[models.name_before_ppo]}.json"
    return str(read_json(path)["output_hash"]) if path.is_file() else None


def _refuse_other_settings(folder: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Settings that one side does not know, for it is of another version, are as they were before there were any."""
    differing = sorted(key for key in saved.keys() & now.keys() if saved[key] != now[key])
    if differing:
        changes = "\n".join(f"  {key}: {saved[key]} in the checkpoint, {now[key]} now" for key in differing)
        raise ConfigError(
            f"{folder / 'config.toml'} is not of the run that left the checkpoints:\n{changes}\n"
            "Put these back to replay"
        )


def _recorded(folder: Path) -> frozenset[int]:
    """Updates whose trajectories are there."""
    matches = (_TRAJECTORIES.fullmatch(path.name) for path in (folder / "trajectories").glob("update_*"))
    return frozenset(int(match[1]) for match in matches if match is not None)
