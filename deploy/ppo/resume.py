"""Going on with a PPO stage that was cut off: is it still the same run, and which of its files are ahead of it.

Settings and inputs are kept in every checkpoint. A run whose settings changed in what matters would be neither the old
run nor a new one, so it is refused. What was written after the checkpoint is cut away, for it will be done again: so a
run that was cut off leaves the same files as one that was not.

Not here: which checkpoint it is (`common/checkpoint_store.py`) and who loads it (`ppo/stage.py`).
"""

import json
import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from common.config import RunConfig
from common.config_base import settings_that_matter
from common.errors import ConfigError, DataError
from common.run_place import copies
from deploy.fingerprint import depends_on

_TRAJECTORIES = re.compile(r"update_(\d+)\.(safetensors|partial)")
_ABSENT = "not there"


def run_settings(config: RunConfig, inputs: Mapping[str, str]) -> dict[str, JsonValue]:
    """All on which the result of PPO depends, by dotted name, as in `ppo.optimizer.lr`; it goes into every checkpoint.

    The number of updates is left out where no learning rate depends on it: such a run may go on for longer, or end
    earlier, and its first updates are the same.

    Args:
        config: the run.
        inputs: hashes of the models that PPO starts from, by role.
    """
    parts = depends_on(config, "ppo", inputs)
    del parts["stage"], parts["settings"]  # of the PPO stage; its settings are under `ppo` too
    flat = dict(flatten("", parts))
    if config.ppo is not None and config.ppo.lr_final_fraction == 1:
        del flat["ppo.updates"]
    return flat


def learner_settings(config: RunConfig, policy: str) -> dict[str, JsonValue]:
    """Of `run_settings`, those on which an update depends once its samples are there; reads no data.

    Args:
        config: the run.
        policy: hash of the policy that PPO starts from.
    """
    assert config.ppo is not None, "PPO has updates"
    parts = {
        "seed": config.seed,
        "ppo": settings_that_matter(config.ppo),
        "learner": settings_that_matter(config.learner),
        "inputs": {"policy": policy},
    }
    flat = dict(flatten("", parts))
    if config.ppo.lr_final_fraction == 1:
        del flat["ppo.updates"]
    return flat


def flatten(prefix: str, value: Any) -> Iterator[tuple[str, JsonValue]]:
    """Each value with its dotted name; an empty table is a value."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from flatten(f"{prefix}.{key}" if prefix else str(key), item)
    elif isinstance(value, float) and not math.isfinite(value):
        yield prefix, str(value)  # JSON has no infinity
    else:
        yield prefix, value


def refuse_changes(saved: Mapping[str, JsonValue], now: Mapping[str, JsonValue]) -> None:
    """Raise ConfigError if a checkpoint is of another run than this one.

    Args:
        saved: `run_settings` when the checkpoint was written.
        now: `run_settings` as they are now.
    """
    keys = sorted(key for key in saved.keys() | now.keys() if saved.get(key, _ABSENT) != now.get(key, _ABSENT))
    if keys:
        changes = "\n".join(
            f"  {key}: {_shown(saved.get(key, _ABSENT))} in the checkpoint, {_shown(now.get(key, _ABSENT))} now"
            for key in keys
        )
        threads = (
            "Threads follow num_cpus where they are not set. " if any(k.endswith(".threads") for k in keys) else ""
        )
        raise ConfigError(
            f"this run cannot be resumed, for it would go on with other settings or inputs:\n{changes}\n{threads}"
            "Put them back to resume; begin PPO anew with `--again ppo`; or keep both under another `name`"
        )


def _shown(value: JsonValue) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def rewind(folder: Path, step: int) -> None:
    """Bring the files of a run back to where they were after an update, as if nothing had come later.

    Lines of later updates go from metrics.jsonl, samples.jsonl and evaluations.jsonl, and with them a last line that
    was cut short; so do trajectories of later updates. Held-out samples go too: evaluation comes after PPO, so they are
    of another policy.

    Args:
        folder: of the run.
        step: updates behind the checkpoint that the run goes on from.

    Raises:
        DataError: a line before the last one makes no sense; names it.
    """
    for name in ("metrics.jsonl", "samples.jsonl", "evaluations.jsonl"):
        _cut(folder / name, step)
    for place in copies(folder / "trajectories"):
        for name in place.names():
            match = _TRAJECTORIES.fullmatch(name)
            if match is not None and (int(match[1]) > step or match[2] == "partial"):
                place.remove(name)


def _cut(path: Path, step: int) -> None:
    """Keep the lines of updates up to `step`, byte for byte; who reads the file meanwhile sees it before or after."""
    if not path.is_file():
        return
    lines = path.read_bytes().splitlines(keepends=True)
    kept = [
        line for number, line in enumerate(lines, 1) if _stays(path, number, line, step, is_last=number == len(lines))
    ]
    partial = path.with_name(f"{path.name}.partial")
    with partial.open("wb") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _stays(path: Path, number: int, line: bytes, step: int, *, is_last: bool) -> bool:
    if is_last and not line.endswith(b"\n"):
        return False
    try:
        row = json.loads(line)
        if not isinstance(row, dict):
            raise TypeError(f"it holds {row!r}")
        return "step" in row and int(row["step"]) <= step
    except (ValueError, TypeError) as error:
        raise DataError(f"{path}:{number}: no line of a run: {error}; delete it to resume") from error
