"""The reward that all peers maximise, from ids, as one number for a sample. Needs torch and transformers, of any age.

It has the shape that TRL's PPO wants of a reward model: a backbone whose last hidden states a linear head reads, the
last position's number being the score.

Legend: B samples, T tokens of prompt and response.
"""

from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn
from transformers import AutoModelForSequenceClassification

from deploy.bench.peers.programs.task import Task

SHARE = 4
"""The reward `token_share` is the share of the response's tokens whose id divides by this."""


class _CountedTokens(nn.Module):
    """Stands where a backbone would: the hidden state of a position is the share so far."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task

    def forward(self, input_ids: Tensor, **_ignored: object) -> SimpleNamespace:
        """[B, T] ids to one hidden state, [B, T, 1]."""
        is_wanted = (input_ids % SHARE == 0).float()
        is_wanted[:, : self.task.prompt_tokens] = 0
        return SimpleNamespace(hidden_states=(is_wanted.cumsum(-1)[..., None] / self.task.response_tokens,))


class TokenShare(nn.Module):
    """Share of wanted tokens in the response, from 0 to 1."""

    base_model_prefix = "model"

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.model = _CountedTokens(task)
        self.score = nn.Identity()


def load_judge(folder: Path, task: Task) -> nn.Module:
    """The reward model of a work folder."""
    if task.reward == "token_share":
        return TokenShare(task)
    judge: nn.Module = AutoModelForSequenceClassification.from_pretrained(folder / "reward").eval()
    return judge


@torch.no_grad()
def judge_ids(judge: nn.Module, ids: Tensor) -> Tensor:
    """[B] scores of [B, T] prompts and responses of full length."""
    backbone = getattr(judge, str(judge.base_model_prefix))
    hidden = backbone(input_ids=ids, output_hidden_states=True, use_cache=False).hidden_states[-1]
    scores: Tensor = judge.score(hidden)[:, -1, 0]  # type: ignore[operator]
    return scores
