"""Whether what a run writes fits the disks: an estimate from shapes and settings, from above; nothing is loaded."""

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from common.config import RunConfig
from common.modeling import freeze_below, resolve_dtype
from common.ppo_config import Muon, PPOConfig
from deploy.finding import Finding, show_bytes
from deploy.storage_probe import free_bytes, is_local, open_place
from learner.optimizers import is_table

_VALUE_BYTES = 4  # ids int32, logprobs float32, the exported policy of a fresh model
_SAMPLE_BYTES = 100  # what a trajectory file holds of a sample beside its tokens


@dataclass(frozen=True, slots=True)
class Need:
    """What is written to one place in the course of the run."""

    what: str
    place: str
    """Path or URL."""
    total_bytes: int


def policy_on_meta(shape: PretrainedConfig, config: RunConfig) -> PreTrainedModel:
    """The policy without memory: shapes and types alone."""
    dtype = resolve_dtype(config.learner.dtype, torch.device("cpu"), serves=False)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(shape, dtype=dtype)


def checkpoint_bytes(policy: PreTrainedModel, ppo: PPOConfig) -> int:
    """Weights and optimizer state of one checkpoint: AdamW keeps two numbers per trained weight, Muon one per weight
    of a hidden matrix.
    """
    if ppo.trainable_layers is not None:
        freeze_below(policy, ppo.trainable_layers)
    total = 0
    for name, parameter in policy.named_parameters():
        size = parameter.numel() * parameter.element_size()
        by_muon = isinstance(ppo.optimizer, Muon) and parameter.ndim == 2 and not is_table(name)
        copies = (1 if by_muon else 2) if parameter.requires_grad else 0
        total += size * (1 + copies)
    return total


def trajectory_bytes(config: RunConfig, ppo: PPOConfig) -> int:
    """All trajectory files, every response as long as it may be."""
    per_token = 1 + 1 + (ppo.reference == "service")  # id, logprob, reference logprob
    tokens = ppo.prompt_tokens.max + ppo.response_tokens.max * per_token
    return ppo.updates * ppo.trajectories_per_update * (tokens * _VALUE_BYTES + _SAMPLE_BYTES)


def room_needed(config: RunConfig, folder: Path, policy: PreTrainedModel) -> list[Need]:
    """What the run writes to its folder and to `ppo.checkpoint_url`."""
    weights = sum(p.numel() * p.element_size() for p in policy.parameters())
    copies = sum(stage is not None for stage in (config.pretrain, config.sft, config.ppo)) + (
        config.model.type == "gguf"
    )
    found = [Need("models", str(folder / "models"), weights * copies)]
    if config.pretrain is not None:
        found.append(Need("pre-trained model, for other runs", str(folder.parent / ".cache"), weights))
    if config.ppo is None:
        return found
    ppo = config.ppo
    number = ppo.keep_last + ppo.keep_best + 1  # one is written before another goes
    one = checkpoint_bytes(policy, ppo)
    what = f"{number} checkpoints of {show_bytes(one)}"
    return [
        *found,
        Need("trajectories", str(folder / "trajectories"), trajectory_bytes(config, ppo)),
        Need(what, ppo.checkpoint_url or str(folder / "checkpoints"), number * one),
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
