"""What all peers do alike, in a file of the work folder. Standard library only: every environment reads it.

WORK/task.json  prompts.json  tokenizer.json     the same for all
WORK/policy/    value/  small_value/  reward/    models in Hugging Face's format, the same random weights for all
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

RewardName = Literal["classifier", "token_share"]
END, PADDING = "<eos>", "<pad>"
"""Tokens whose ids are beyond the model's vocabulary: nobody can sample them, so that all responses have full length
whoever looks for an end."""


@dataclass(frozen=True, slots=True)
class Task:
    """Sizes and hyperparameters of a step of PPO."""

    steps: int
    """Steps that may be asked for."""
    seed: int = 0
    threads: int = 2
    reward: RewardName = "classifier"
    batch: int = 32
    """Samples of a step."""
    minibatch: int = 8
    """Samples of an optimizer step."""
    epochs: int = 4
    prompt_tokens: int = 8
    response_tokens: int = 16
    learning_rate: float = 1e-5
    beta1: float = 0.9
    beta2: float = 0.95
    clip_eps: float = 0.2
    value_clip_eps: float = 0.2
    value_coef: float = 0.1
    kl_coef: float = 0.05
    gamma: float = 1.0
    gae_lambda: float = 0.95

    @property
    def minibatches(self) -> int:
        """Optimizer steps of an epoch."""
        return self.batch // self.minibatch

    def write(self, folder: Path) -> None:
        """Leave it in a work folder."""
        (folder / "task.json").write_text(json.dumps(dataclasses.asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> "Task":
        """That of a work folder."""
        return cls(**json.loads((folder / "task.json").read_text(encoding="utf-8")))


def read_prompts(folder: Path) -> list[list[int]]:
    """Ids of each prompt, all of equal length: `batch` for each step."""
    prompts: list[list[int]] = json.loads((folder / "prompts.json").read_text(encoding="utf-8"))
    return prompts
