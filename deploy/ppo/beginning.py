"""From where PPO starts: the newest verified checkpoint of the same settings, or from the beginning."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.checkpoint import Checkpoint
from common.checkpoint_store import CheckpointStore
from common.config import RunConfig
from common.errors import CheckpointError, ConfigError
from common.run_place import shared
from deploy.ppo.new_settings import at_their_default
from deploy.ppo.resume import refuse_changes
from deploy.run_folder.files import read_json


@dataclass(frozen=True, slots=True)
class Beginning:
    """Where PPO starts, and by which settings its checkpoints are known again."""

    store: CheckpointStore
    settings: Mapping[str, Any]
    """All on which PPO's result depends, by dotted key."""
    checkpoint: Checkpoint | None
    """None: from the beginning."""
    anew: bool = False
    """Whether what is there is to be thrown away."""

    @property
    def step(self) -> int:
        """Updates that are done already."""
        return 0 if self.checkpoint is None else self.checkpoint.step


def find_beginning(
    config: RunConfig, folder: Path, settings: Mapping[str, Any], *, anew: bool, warn: Callable[[str], None]
) -> Beginning:
    """Look for a checkpoint to go on from; changes nothing on disk.

    Args:
        config: the run.
        folder: of the run.
        settings: of the run as it is configured now.
        anew: do not go on from any.
        warn: told of checkpoints that are damaged, and so passed over, and of settings that one does not know.

    Raises:
        ConfigError: there is a checkpoint of other settings, named by the keys that differ, or of more updates.
        CheckpointError: there are checkpoints, and none is whole; or there was one, and it is gone.
    """
    assert config.ppo is not None, "the pipeline runs the stages that the configuration names"
    url = config.ppo.checkpoint_url or shared(folder / "checkpoints")
    store = CheckpointStore(url, keep_last=config.ppo.keep_last, keep_best=config.ppo.keep_best)
    if anew:
        return Beginning(store, settings, None, anew=True)
    checkpoint = newest_whole(store, warn)
    if checkpoint is None:
        _miss_none(folder, store)
    else:
        saved: Any = store.read_state(checkpoint)["settings"]
        new = at_their_default(config, saved, settings)
        refuse_changes({**saved, **new}, settings)
        if new:
            warn(
                f"{checkpoint.name} is from before there were these settings, and they are at their defaults: "
                f"{', '.join(f'{key}={json.dumps(value)}' for key, value in new.items())}; the run goes on"
            )
        if checkpoint.step > config.ppo.updates:
            raise ConfigError(
                f"{checkpoint.name} is of {checkpoint.step} updates, and ppo.updates={config.ppo.updates} asks for "
                "fewer; raise ppo.updates, begin PPO anew with `--again ppo`, or keep both under another `name`"
            )
    return Beginning(store, settings, checkpoint)


def _miss_none(folder: Path, store: CheckpointStore) -> None:
    """Raise CheckpointError if there was a checkpoint: to start from the beginning would throw the run away."""
    path = folder / "ledger.json"
    known = read_json(path).get("checkpoint") if path.is_file() else None
    if known is not None:
        raise CheckpointError(
            f"there was a checkpoint of update {known['step']} at {known['url']}, and there is none in {store.url}; "
            "put it back, set ppo.checkpoint_url to where it is, or start anew with `--again ppo`"
        )


def newest_whole(
    store: CheckpointStore, warn: Callable[[str], None], *, before_step: int | None = None
) -> Checkpoint | None:
    """The newest verified checkpoint; None where there are none at all.

    Args:
        store: where they are.
        warn: told of those that are damaged, and so passed over.
        before_step: the newest of fewer updates than these, and where there is none the oldest of all.

    Raises:
        CheckpointError: there are checkpoints, and none is whole: to go on from the start would throw them away.
    """
    checkpoint, damaged = store.newest_verified(before_step=before_step)
    for message in damaged:
        warn(message)
    if checkpoint is None and damaged:
        raise CheckpointError(
            f"no checkpoint in {store.url} is whole: {damaged[-1]}; put one back, or start anew with `--again ppo`"
        )
    return checkpoint
