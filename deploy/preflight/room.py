"""Whether what a run writes fits the disks: sizes from shapes and settings, from above; nothing is loaded."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.config import RunConfig
from common.run_place import shared
from deploy.explain.sizes import PolicySize, checkpoint_bytes, copies_of_policy, kept_checkpoints, trajectory_file_bytes
from deploy.preflight.finding import Finding, show_bytes
from deploy.preflight.storage_probe import free_bytes, is_local, open_place


@dataclass(frozen=True, slots=True)
class Need:
    """What is written to one place in the course of the run."""

    what: str
    place: str
    """Path or URL."""
    total_bytes: int


def room_needed(config: RunConfig, folder: Path, size: PolicySize) -> list[Need]:
    """What the run writes to its folder and to `ppo.checkpoint_url`."""
    weights = size.weights_bytes
    found = [Need("models", str(folder / "models"), weights * copies_of_policy(config))]
    if config.pretrain is not None:
        found.append(Need("pre-trained model, for other runs", str(folder.parent / ".cache"), weights))
    if config.ppo is None:
        return found
    ppo = config.ppo
    number, one = kept_checkpoints(ppo), checkpoint_bytes(size)
    what = f"{number} checkpoints of {show_bytes(one)}"
    trajectories = ppo.updates * trajectory_file_bytes(config, ppo)
    return [
        *found,
        Need("trajectories", str(folder / "trajectories"), trajectories),
        Need(what, ppo.checkpoint_url or shared(folder / "checkpoints"), number * one),
    ]


def check_room(needs: list[Need], elsewhere: Mapping[str, int]) -> list[Finding]:
    """Compare, disk by disk, what is still to be written with what is free.

    Args:
        needs: what is written where.
        elsewhere: least room that other nodes see, by local folder.
    """
    disks: dict[int, list[tuple[Need, int]]] = {}
    found = []
    for need in needs:
        fs, path = open_place(need.place)
        if is_local(fs):
            missing = max(0, need.total_bytes - _bytes_in(Path(path)))
            disks.setdefault(_device(Path(path)), []).append((need, missing))
        else:
            found.append(Finding("room", f"{need.what}, about {show_bytes(need.total_bytes)}, go to {need.place}"))
    for parts in disks.values():
        found.append(_disk(parts, elsewhere))
    return found


def _disk(parts: list[tuple[Need, int]], elsewhere: Mapping[str, int]) -> Finding:
    paths = [open_place(need.place)[1] for need, _ in parts]
    where = os.path.commonpath(paths)
    seen = [room for folder, room in elsewhere.items() if any(Path(path).is_relative_to(folder) for path in paths)]
    free = min([free_bytes(where), *seen])
    needed = sum(missing for _, missing in parts)
    shown = ", ".join(f"{need.what} ({show_bytes(missing)})" for need, missing in parts)
    if needed <= free:
        return Finding("room", f"{where}: about {show_bytes(needed)} needed, {show_bytes(free)} free: {shown}")
    return Finding(
        "room",
        failure=f"{where} lacks room: about {show_bytes(needed)} needed, {show_bytes(free)} free: {shown}. Free at "
        f"least {show_bytes(math.ceil(needed - free))}, lower ppo.keep_last or ppo.keep_best, or set "
        "ppo.checkpoint_url or --runs to another disk",
    )


def _device(path: Path) -> int:
    return next(place for place in (path, *path.parents) if place.exists()).stat().st_dev


def _bytes_in(path: Path) -> int:
    """What an earlier attempt has left there."""
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file())
