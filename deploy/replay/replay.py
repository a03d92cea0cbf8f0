"""Replay: does an update, done once more from what the run recorded, give the same numbers?

    checkpoint ─▶ learner ─▶ recorded trajectories, settings in force ─▶ update ─▶ metrics, weights ─▶ compared

Reads the run folder, of a live run too, and never writes to it. Called by `replay/cli.py`. Pure, and elsewhere: what
can be replayed (`replay/plan.py`), and what was found (`replay/result.py`).
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from common.checkpoint import MANIFEST, Checkpoint, read_shard
from common.errors import CheckpointError, ConfigError, DataError
from common.records import Identity, ModelPaths
from common.storage import Folder
from deploy.local import threads
from deploy.replay.result import (
    LargestDifference,
    Replay,
    UpdateReplay,
    compare_metrics,
    compare_tensors,
    compare_weights,
)
from deploy.run_folder.recorded_run import RecordedRun
from learner.service import LearnerService, Snapshot, build_learner
from learner.trajectory_file import read_back, trajectory_path

Show = Callable[[int, int, str], None]
"""Told updates done, updates in all, and what is being done."""


def replay(run: RecordedRun, update: int, show: Show) -> Replay:
    """Recompute an update and those before it, from the newest start that there is.

    Raises:
        DataError: it cannot be replayed; says why, and which can.
        CheckpointError: the checkpoint to begin with is damaged, or was removed by the run meanwhile.
    """
    start = run.plan.start_of(update)
    total, found = update - start.step, list[UpdateReplay]()
    show(0, total, f"loading {start.name}")
    with threads(run.config.learner.num_threads):
        service = build_learner(run.config, ModelPaths(run.policy, None), run.folder)
        try:
            service.load(start.url, lineage=start.lineage)
        except CheckpointError as error:
            error.add_note(
                "A live run removes checkpoints: if it was removed meanwhile, give the command again. If it is "
                f"damaged, --from {max(0, start.step - 1)} begins with an earlier one"
            )
            raise
        for step in range(start.step + 1, update + 1):
            show(len(found), total, f"update {step}")
            found.append(_redo(run, service, step))
            if service.step != step:  # no step of it was finite: nothing can follow
                break
    return Replay.of(run.folder.resolve().name, start.name, start.step, tuple(found))


def _redo(run: RecordedRun, service: LearnerService, update: int) -> UpdateReplay:
    row, path = run.rows[update], trajectory_path(run.folder / "trajectories", update)
    lineage = int(row.identity.split(".")[0])
    service.learner.lineage = lineage
    trajectories = read_back(path, lineage=lineage)
    try:
        report = service.learner.update(trajectories, run.settings(update))
    except (DataError, ConfigError):
        raise
    except ValueError as error:
        raise DataError(f"{path} is not what update {update} trained on: {error}") from error
    kept = run.checkpoints.get(update)
    return UpdateReplay(
        update=update,
        metrics=compare_metrics(row.metrics, report.metrics),
        weights=compare_weights(row.weights_hash, report.weights_hash),
        weights_hash=report.weights_hash,
        tensors=_against(kept, service) if kept is not None and report.identity == Identity(lineage, update) else None,
    )


def _against(kept: Checkpoint, service: LearnerService) -> LargestDifference | None:
    """The learner as it is now against a checkpoint; None where that was removed meanwhile."""
    try:
        tensors, state = read_shard(kept.url)
    except CheckpointError:
        if MANIFEST in Folder.at(kept.url).names():
            raise
        return None
    return compare_tensors(_arrays(Snapshot(tensors, dict(state))), _arrays(service.state()))


def _arrays(snapshot: Snapshot) -> Mapping[str, npt.NDArray[Any]]:
    """All numbers on which later updates depend, by name."""
    numbers = {
        f"{part}.{name}": np.array(value)
        for part in ("controller", "scores")
        for name, value in snapshot.state.get(part, {}).items()
    }
    # numpy has no bfloat16
    return numbers | {
        name: (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()
        for name, tensor in snapshot.tensors.items()
    }
