"""The learner as others see it: payloads in, reports out, files where the data is. A plain class; Ray is optional."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from common.checkpoint import read_checkpoint, write_checkpoint
from common.config import RunConfig
from common.errors import CheckpointError
from common.modeling import PolicyWithValueHead, load_policy, resolve_device
from common.records import (
    JudgementChunk,
    ModelPaths,
    ReferenceChunk,
    RolloutChunk,
    UpdateReport,
    WeightsHandle,
)
from common.seeds import mix, permutation, seed_everything
from common.text import load_tokenizer
from learner.batch import in_order, join
from learner.optimizers import pack_state, unpack_state
from learner.ppo import PPOLearner
from learner.trajectory_file import trajectory_path, write_trajectories

Payload = tuple[RolloutChunk, JudgementChunk, ReferenceChunk | None]

_PROBE = 8
PROBE_ROWS, PROBE_TOKENS = 4, 12


class LearnerService:
    """A PPO learner that records what it trains on and writes its own checkpoints.

    Args:
        learner: does the mathematics.
        tokenizer: exported beside the policy.
        folder: of the run; `trajectories/` goes there.
    """

    def __init__(self, learner: PPOLearner, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
        self.learner = learner
        self.tokenizer = tokenizer
        self.folder = folder

    @property
    def step(self) -> int:
        """Updates done."""
        return self.learner.step

    def weights(self) -> WeightsHandle:
        """The policy as it is now; the buffer is in the handle."""
        return self.learner.weights()

    def update(self, payloads: Sequence[Payload]) -> UpdateReport:
        """Train on the chunks' samples once and record them; see PPOLearner.update."""
        trajectories = [t for payload in payloads for t in join(*payload)]
        ordered = in_order(trajectories, expected=self.learner.identity)
        path = trajectory_path(self.folder / "trajectories", self.learner.step + 1)
        write_trajectories(path, ordered)  # first, so that an update that fails leaves its evidence
        return self.learner.update(ordered)

    def save(self, folder: Path) -> None:
        """Write weights, value head, optimizer state, step, lineage and KL controller, whole or not at all."""
        tensors: dict[str, Tensor] = {f"model.{k}": v for k, v in self.learner.plain.named_parameters()}
        groups = []
        for number, optimizer in enumerate(self.learner.optimizers):
            state, group = pack_state(optimizer)
            tensors |= {f"optimizer.{number}.{k}": v for k, v in state.items()}
            groups.append(group)
        state_json = {
            "step": self.learner.step,
            "lineage": self.learner.lineage,
            "controller": self.learner.controller.state_dict(),
            "optimizer_groups": groups,
            "threads": torch.get_num_threads(),
        }
        write_checkpoint(folder, tensors, state_json)

    def load(self, folder: Path) -> None:
        """Put back what `save` wrote.

        Raises:
            CheckpointError: it is damaged, or of another model or optimizer; the weights are as they were.
        """
        tensors, state = read_checkpoint(folder)
        self._check_fit(folder, tensors, state)
        for number, optimizer in enumerate(self.learner.optimizers):
            prefix = f"optimizer.{number}."
            mine = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            unpack_state(optimizer, mine, state["optimizer_groups"][number])
        self.learner.controller.load_state_dict(state["controller"])
        with torch.no_grad():
            for name, parameter in self.learner.plain.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
        self.learner.step, self.learner.lineage = state["step"], state["lineage"]

    def _check_fit(self, folder: Path, tensors: dict[str, Tensor], state: dict[str, Any]) -> None:
        """Raise CheckpointError unless the checkpoint is of this model and of these optimizers."""
        needed = {f"model.{name}": p.shape for name, p in self.learner.plain.named_parameters()}
        found = {name: t.shape for name, t in tensors.items() if name.startswith("model.")}
        if wrong := [name for name in needed | found if needed.get(name) != found.get(name)]:
            raise CheckpointError(
                f"{folder} is of another model: {wrong[0]} has shape {found.get(wrong[0])} there and "
                f"{needed.get(wrong[0])} here ({len(wrong)} tensors differ)"
            )
        if len(state["optimizer_groups"]) != len(self.learner.optimizers):
            raise CheckpointError(
                f"{folder} holds the state of {len(state['optimizer_groups'])} optimizers, but the configuration names "
                f"{len(self.learner.optimizers)}; resume with the optimizer it was written with"
            )

    def export(self, folder: Path) -> None:
        """Leave the policy, without value head, and its tokenizer in Hugging Face's format."""
        self.learner.plain.policy.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)


def build_accelerator(config: RunConfig) -> Accelerator:
    """Device and processes of the learner, from its placement."""
    device = resolve_device(config.learner.device, config.learner.num_gpus)
    return Accelerator(cpu=device.type == "cpu")


def build_learner(config: RunConfig, paths: ModelPaths, folder: Path) -> LearnerService:
    """A learner that starts from `paths.policy`, in the process that calls this."""
    assert config.ppo is not None, "a PPO learner is of a PPO stage"
    seed_everything(mix(config.seed, 9))
    tokenizer = load_tokenizer(paths.policy)
    model = PolicyWithValueHead(load_policy(paths.policy, dtype=config.learner.dtype))
    probe = permutation(len(tokenizer), config.seed, _PROBE)[: PROBE_ROWS * PROBE_TOKENS]
    learner = PPOLearner(
        model,
        config.ppo,
        run_seed=config.seed,
        accelerator=build_accelerator(config),
        probe_ids=torch.from_numpy(np.resize(probe, (PROBE_ROWS, PROBE_TOKENS))),
    )
    return LearnerService(learner, tokenizer, folder)
