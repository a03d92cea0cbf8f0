"""The learner as others see it: payloads in, reports out, files where the data is. A plain class; Ray is optional."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from common.checkpoint import ShardFiles, read_shard, write_shard
from common.config import RunConfig
from common.errors import CheckpointError
from common.freed_memory import keep_freed_memory
from common.modeling import PolicyWithValueHead, load_policy, resolve_device, resolve_dtype, save_policy, twin_trunk
from common.records import (
    JudgementChunk,
    ModelPaths,
    ReferenceChunk,
    RolloutChunk,
    UpdateReport,
    WeightsHandle,
)
from common.run_place import Outbox, share
from common.run_settings import RunSettings
from common.seeds import mix, permutation, seed_everything
from common.text import load_tokenizer
from learner.batch import in_order, join
from learner.optimizers import pack_state, unpack_state
from learner.ppo import PPOLearner
from learner.trajectory_file import trajectory_path, write_trajectories

Payload = tuple[RolloutChunk, JudgementChunk, ReferenceChunk | None, tuple[int, ...]]
"""What a chunk's handle refers to, and the draws that the handle stands for."""

_PROBE = 8
PROBE_ROWS, PROBE_TOKENS = 4, 12


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All on which later updates depend, copied: what goes on training does not change it."""

    tensors: dict[str, Tensor]
    """On the CPU, by name."""
    state: dict[str, Any]
    """JSON-able."""


class LearnerService:
    """A PPO learner that records what it trains on and writes its own part of a checkpoint.

    Args:
        learner: does the mathematics.
        tokenizer: exported beside the policy.
        folder: of the run; `trajectories/` goes there.
    """

    def __init__(self, learner: PPOLearner, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        self.learner = learner
        self.tokenizer = tokenizer
        self.folder = folder
        self._snapshot: Snapshot | None = None
        self._outbox = Outbox()

    @property
    def step(self) -> int:
        """Updates done."""
        return self.learner.step

    def weights(self) -> WeightsHandle:
        """The policy as it is now; the buffer is in the handle."""
        return self.learner.weights()

    def lend_weights(self) -> WeightsHandle:
        """The same, in a buffer that is valid until the next update: for those who send it at once."""
        return self.learner.lend_weights()

    def update(self, payloads: Sequence[Payload], settings: RunSettings | None = None) -> UpdateReport:
        """Train on the chunks' samples once and record them; see PPOLearner.update.

        Raises:
            ValueError: as PPOLearner.update; or the samples were drawn at another temperature than the settings say.
        """
        settings = settings or RunSettings.of(self.learner.config)
        if wrong := {payload[0].temperature for payload in payloads} - {settings.temperature}:
            raise ValueError(
                f"samples drawn at temperature {sorted(wrong)} for an update at {settings.temperature}; collect them "
                "with the settings of the update"
            )
        trajectories = [t for payload in payloads for t in join(*payload)]
        samples = self.learner.config.samples_per_prompt
        ordered = in_order(
            trajectories,
            expected=self.learner.identity,
            max_staleness=self.learner.config.max_staleness,
            samples_per_prompt=samples,
        )
        path = trajectory_path(self.folder / "trajectories", self.learner.step + 1)
        write_trajectories(path, ordered)  # first, so that an update that fails leaves its evidence
        self._outbox.put(path)
        return self.learner.update(ordered, settings)

    def snapshot(self) -> None:
        """Copy weights, value head, optimizer state, step, lineage, KL controller and score statistics to CPU memory.

        This is all of a save that training waits for; `write_snapshot` may then run beside the next update. Nothing
        else changes from update to update: noise and orders follow from keys, and the reference comes with the learner.

        Raises:
            CorruptWeightsError: weights or optimizer state are not finite, and must not be saved.
        """
        self.learner.check_finite()
        self._snapshot = self.state()

    def state(self) -> Snapshot:
        """What `snapshot` keeps, finite or not."""
        tensors = {f"model.{name}": _copy(p) for name, p in self.learner.plain.named_parameters()}
        groups = []
        for number, optimizer in enumerate(self.learner.optimizers):
            state, group = pack_state(optimizer)
            tensors |= {f"optimizer.{number}.{name}": _copy(value) for name, value in state.items()}
            groups.append(copy.deepcopy(group))
        return Snapshot(
            tensors,
            {
                "step": self.learner.step,
                "lineage": self.learner.lineage,
                "controller": self.learner.controller.state_dict(),
                "scores": self.learner.scores.state_dict(),
                "optimizer_groups": groups,
                "threads": torch.get_num_threads(),
            },
        )

    def write_snapshot(self, url: str) -> ShardFiles:
        """Write what `snapshot` copied, once, and read it back; may run in a thread of its own.

        Raises:
            CheckpointError: it cannot be written, or is not stored as it was written.
        """
        snapshot, self._snapshot = self._snapshot, None
        if snapshot is None:
            raise RuntimeError("take a snapshot before writing it; each is written once")
        self._outbox.flush()
        return write_shard(url, snapshot.tensors, snapshot.state)

    def load(self, url: str | None, *, lineage: int | None = None) -> None:
        """Put back what a checkpoint holds.

        Args:
            url: of the checkpoint; None: a fresh learner stays as it is.
            lineage: under which the learner goes on, so that its weights are not mistaken for those of the run that
                was cut off; None: that of the checkpoint.

        Raises:
            CheckpointError: it is damaged, or of another model or optimizer; the weights are as they were.
        """
        self._outbox.forget()
        if url is None:
            self.learner.lineage = self.learner.lineage if lineage is None else lineage
            return
        tensors, state = read_shard(url)
        found: dict[str, Any] = dict(state)
        self._check_fit(url, tensors, found)
        for number, optimizer in enumerate(self.learner.optimizers):
            prefix = f"optimizer.{number}."
            mine = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            unpack_state(optimizer, mine, found["optimizer_groups"][number])
        self.learner.scores.load_state_dict(found.get("scores", {}))
        self.learner.controller.load_state_dict(found["controller"])
        self.learner.flat.forget()
        with torch.no_grad():
            for name, parameter in self.learner.plain.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
        self.learner.step = found["step"]
        self.learner.lineage = found["lineage"] if lineage is None else lineage

    def _check_fit(self, url: str, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Raise CheckpointError unless the checkpoint is of this model and of these optimizers."""
        needed = {f"model.{name}": p.shape for name, p in self.learner.plain.named_parameters()}
        found = {name: t.shape for name, t in tensors.items() if name.startswith("model.")}
        if wrong := [name for name in needed | found if needed.get(name) != found.get(name)]:
            raise CheckpointError(
                f"{url} is of another model: {wrong[0]} has shape {found.get(wrong[0])} there and "
                f"{needed.get(wrong[0])} here ({len(wrong)} tensors differ)"
            )
        if len(state["optimizer_groups"]) != len(self.learner.optimizers):
            raise CheckpointError(
                f"{url} holds the state of {len(state['optimizer_groups'])} optimizers, but the configuration names "
                f"{len(self.learner.optimizers)}; resume with the optimizer it was written with"
            )

    def export(self, folder: Path) -> None:
        """Leave the policy, without value head, and its tokenizer in Hugging Face's format."""
        save_policy(self.learner.plain.policy, self.tokenizer, folder)
        self._outbox.flush()
        share(folder)


def _copy(tensor: Tensor) -> Tensor:
    """On the CPU, with memory of its own."""
    return tensor.detach().to("cpu", copy=True).contiguous()


def build_accelerator(config: RunConfig) -> Accelerator:
    """Device and processes of the learner, from its placement; on a CPU, this process keeps what it frees."""
    device = resolve_device(config.learner.device, config.learner.num_gpus)
    if device.type == "cpu":
        keep_freed_memory()
    return Accelerator(cpu=device.type == "cpu")


def build_learner(config: RunConfig, paths: ModelPaths, folder: Path) -> LearnerService:
    """A learner that starts from `paths.policy`, in the process that calls this."""
    assert config.ppo is not None, "a PPO learner is of a PPO stage"
    seed_everything(mix(config.seed, 9))
    tokenizer = load_tokenizer(paths.policy)
    accelerator = build_accelerator(config)
    dtype = resolve_dtype(config.learner.dtype, accelerator.device, serves=False)
    policy = load_policy(paths.policy, dtype=dtype)
    value_trunk = twin_trunk(policy) if config.ppo.value_network == "own" else None
    model = PolicyWithValueHead(policy, value_trunk=value_trunk)
    probe = permutation(len(tokenizer), config.seed, _PROBE)[: PROBE_ROWS * PROBE_TOKENS]
    learner = PPOLearner(
        model,
        config.ppo,
        run_seed=config.seed,
        accelerator=accelerator,
        probe_ids=torch.from_numpy(np.resize(probe, (PROBE_ROWS, PROBE_TOKENS))),
    )
    return LearnerService(learner, tokenizer, folder)
