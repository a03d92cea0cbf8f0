"""The models of a run, looked up beside it: reads its folder, takes no lock, changes nothing.

A stage's model counts once its record is there, for the record is removed first and written last. Checkpoints count as
their store says. So a run may be trained meanwhile.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Literal

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from common.checkpoint import Checkpoint, read_shard
from common.checkpoint_store import CheckpointStore
from common.config import RunConfig
from common.config_file import load_config
from common.errors import CheckpointError, ConfigError
from common.hub import join_revision
from common.modeling import load_policy
from common.run_place import shared
from common.text import load_tokenizer

PolicyName = Literal["pretrained", "sft", "ppo"]
STAGE_OF: Final[Mapping[str, str]] = {
    "base": "base",
    "pretrained": "pretrain",
    "sft": "sft",
    "ppo": "ppo",
    "reward_model": "reward_model",
    "judge": "judge",
}
"""Which stage leaves which folder under models/."""
TRIES = 3
"""A live run may remove a checkpoint between our look at it and our reading it; then there is a newer one."""
_POLICY = "model.policy."
"""How a checkpoint calls the policy's parameters."""


@dataclass(frozen=True, slots=True)
class Policy:
    """Weights of a run, loaded."""

    words: str
    """Which ones, for people."""
    is_trained: bool
    """Whether PPO has worked on them."""
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    source: str
    """Folder or hub name that the tokenizer was read from."""


class RunModels:
    """The models that a run has left so far.

    Args:
        folder: of the run.

    Raises:
        ConfigError: the folder's config.toml is missing, or not understood.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        try:
            self.config: RunConfig = load_config(folder / "config.toml")
        except ConfigError as error:
            error.add_note(f"one of its models can be named by its own folder, as in {folder}/models/ppo")
            raise

    def finished(self, name: str) -> str | None:
        """Folder of a model whose stage is done, by its name under models/."""
        folder = self.folder / "models" / name
        is_done = (self.folder / "stages" / f"{STAGE_OF[name]}.json").is_file() and folder.is_dir()
        return str(folder) if is_done else None

    def before_ppo(self) -> Policy:
        """What PPO starts from."""
        return self.named(self.name_before_ppo)

    @property
    def name_before_ppo(self) -> PolicyName:
        """The stage whose policy PPO starts from."""
        return "sft" if self.config.sft is not None else "pretrained"

    def classifier(self, role: Literal["reward_model", "judge"]) -> str | None:
        """Where a classifier is; None where the run has none, or has not trained it yet."""
        table = getattr(self.config, role)
        if table is None:
            return None
        if table.training is None:
            return join_revision(table.classifier.path, table.classifier.revision)
        return self.finished(role)

    def named(self, name: PolicyName) -> Policy:
        """The policy that a stage left; of a run that starts from a ready-made model, `pretrained` is that one.

        Raises:
            ConfigError: it is not there; names what is.
        """
        path = self.path(name)
        words = {"pretrained": "before fine-tuning", "sft": "after supervised fine-tuning", "ppo": "after PPO"}[name]
        return Policy(f"{words} ({path})", name == "ppo", load_policy(path), load_tokenizer(path), path)

    def path(self, name: PolicyName) -> str:
        """Folder or hub name of the policy that `named` loads; raises ConfigError as it does."""
        path = self._ready_made() if name == "pretrained" else self.finished(name)
        if path is None:
            raise ConfigError(f"{self.folder} holds no finished {name!r}; there are: {self._there()}")
        return path

    def _ready_made(self) -> str | None:
        """What fine-tuning starts from: pre-trained by the run, unpacked by it, or named in its configuration."""
        model = self.config.model
        named = join_revision(model.path, model.revision) if model.type == "pretrained" else None
        return self.finished("pretrained") or self.finished("base") or named

    def newest(self) -> Policy:
        """The policy after PPO, else the newest checkpoint that verifies, else what PPO starts from, or would.

        Raises:
            ConfigError: the run has left no policy yet.
        """
        if self.finished("ppo") is not None:
            return self.named("ppo")
        if self.store().checkpoints():
            return self.checkpoint("latest")
        return self.named("sft" if self.finished("sft") is not None else "pretrained")

    def checkpoint(self, which: str) -> Policy:
        """The policy of a checkpoint.

        Args:
            which: `latest`; `best`, by the score that `ppo.keep_best` goes by; or its step.

        Raises:
            CheckpointError: it is not there, or damaged.
            ConfigError: `which` is none of these.
        """
        start = self.before_ppo()
        for tries_left in reversed(range(TRIES)):
            chosen = self._choose(which)
            try:
                load_from_checkpoint(start.model, chosen)
                break
            except CheckpointError:
                is_there = chosen.url in {c.url for c in self.store().checkpoints()}
                if is_there or not tries_left:
                    raise
        return replace(start, words=f"after {chosen.step} updates of PPO ({chosen.url})", is_trained=True)

    def _choose(self, which: str) -> Checkpoint:
        store = self.store()
        there = store.checkpoints()
        steps = ", ".join(str(c.step) for c in there) or "none"
        if which == "latest":
            checkpoint, damaged = store.newest_verified()
            if checkpoint is None:
                raise CheckpointError(
                    f"{store.url} holds no whole checkpoint: {damaged[-1] if damaged else 'it is empty'}"
                )
            return checkpoint
        if which == "best":
            scored = [c for c in there if c.score is not None]
            if not scored:
                raise CheckpointError(f"no checkpoint in {store.url} has a score; there are those of updates {steps}")
            return max(scored, key=lambda c: (c.score, c.lineage, c.step))
        if not which.isdecimal():
            raise ConfigError(f"--checkpoint {which}: legal are latest, best, or an update; there are {steps}")
        found = [c for c in there if c.step == int(which)]
        if not found:
            raise CheckpointError(f"{store.url} holds no checkpoint of update {which}; there are {steps}")
        return found[-1]

    def store(self) -> CheckpointStore:
        """Only ever read here: who keeps checkpoints is the run."""
        ppo = self.config.ppo
        url = None if ppo is None else ppo.checkpoint_url
        return CheckpointStore(url or shared(self.folder / "checkpoints"), keep_last=1, keep_best=0)

    def _there(self) -> str:
        models = [name for name in ("pretrained", "sft", "ppo") if self.finished(name) is not None]
        steps = [str(c.step) for c in self.store().checkpoints()]
        checkpoints = [f"checkpoints of updates {', '.join(steps)} (--checkpoint)"] if steps else []
        return ", ".join([*models, *checkpoints]) or "none"


def load_from_checkpoint(policy: PreTrainedModel, checkpoint: Checkpoint) -> None:
    """Put a checkpoint's weights into the policy that PPO started from; value head and optimizer state are left.

    Raises:
        CheckpointError: it is damaged, gone, or of another model; the policy is then as it was.
    """
    tensors, _ = read_shard(checkpoint.url)
    found = {name.removeprefix(_POLICY): tensor for name, tensor in tensors.items() if name.startswith(_POLICY)}
    needed = dict(policy.named_parameters())
    if wrong := sorted(name for name in needed | found if _shape(needed, name) != _shape(found, name)):
        raise CheckpointError(
            f"{checkpoint.url} is of another model: {wrong[0]} has shape {_shape(found, wrong[0])} there and "
            f"{_shape(needed, wrong[0])} in the model that the run starts from"
        )
    with torch.no_grad():
        for name, parameter in needed.items():
            parameter.copy_(found[name])


def _shape(tensors: Mapping[str, torch.Tensor], name: str) -> tuple[int, ...] | None:
    return tuple(tensors[name].shape) if name in tensors else None
