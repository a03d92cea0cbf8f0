"""From the reward service's scores to those that PPO learns from, and the running statistics behind it.

    score ─▶ normalise ─▶ scale ─▶ clip ─▶ charge the responses that did not end by themselves

Normalising comes before scaling, for a factor before it would cancel: so `score_scale` is the spread that PPO sees, and
`score_clip` is in units of it. The penalty comes last, so that neither can hide it.

Called by `ppo.py` once per update. Not here: the maths of the last three (`advantages.shaped_scores`).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from common.errors import CheckpointError
from common.ppo_config import PPOConfig
from common.score_config import RunningNormalization
from learner.advantages import shaped_scores

_LEAST_SPREAD = 1e-6
"""Scores whose spread is a smaller share of their size do not differ: float32 holds 7 digits."""


@dataclass(frozen=True, slots=True)
class Moments:
    """Mean and spread of numbers, merged batch by batch (Chan, Golub and LeVeque 1979, eq. 2.1)."""

    weight: float = 0.0
    """How many numbers; with decay, how many they count for."""
    mean: float = 0.0
    m2: float = 0.0
    """Sum of the squared differences from the mean."""

    @classmethod
    def of(cls, values: Tensor) -> "Moments":
        """Of one batch, in float64 whatever its precision: [B]."""
        numbers = values.detach().cpu().numpy().astype(np.float64)
        mean = float(numbers.mean())
        return cls(float(len(numbers)), mean, float(np.square(numbers - mean).sum()))

    def merged(self, batch: "Moments", decay: float) -> "Moments":
        """With another batch, after what was here lost `decay` of its weight."""
        before = decay * self.weight
        weight, gap = before + batch.weight, batch.mean - self.mean
        mean = self.mean + gap * batch.weight / weight
        return Moments(weight, mean, decay * self.m2 + batch.m2 + gap * gap * before * batch.weight / weight)

    @property
    def std(self) -> float:
        """Standard deviation; 1 where the numbers do not differ, so that dividing by it changes nothing."""
        std = math.sqrt(self.m2 / self.weight)
        return std if std > _LEAST_SPREAD * abs(self.mean) else 1.0


class ScoreShaping:
    """Shapes the scores of each update by the configuration, and remembers what normalising needs.

    Args:
        config: the PPO stage.
    """

    def __init__(self, config: PPOConfig) -> None:
        self.config = config
        self._moments = Moments()
        self._next = self._moments

    def shape(self, scores: Tensor, is_truncated: Tensor) -> tuple[Tensor, dict[str, float]]:
        """Shape the scores of one update; the statistics stay as they were until `keep`.

        Args:
            scores: [B] float, finite, in an order that does not depend on who generated.
            is_truncated: [B] bool, cut at the length limit.

        Returns:
            [B] float, and the metrics of what was done.
        """
        config, seen = self.config, {}
        if isinstance(config.score_normalization, RunningNormalization):
            self._next = self._moments.merged(Moments.of(scores), config.score_normalization.decay)
            seen = {"score_running_mean": self._next.mean, "score_running_std": self._next.std}
            middle = self._next.mean if config.score_normalization.subtract_mean else 0.0
            scores = (scores - middle) / self._next.std
        if config.score_clip is not None:
            is_clipped = (scores * config.score_scale).abs() > config.score_clip
            seen["score_clipped_fraction"] = float(is_clipped.double().mean())
        shaped = shaped_scores(
            scores,
            is_truncated,
            scale=config.score_scale,
            clip=config.score_clip,
            missing_eos_penalty=config.missing_eos_penalty,
        )
        return shaped, seen

    def keep(self) -> None:
        """The update counts: so do its scores."""
        self._moments = self._next

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps, JSON-able; empty where nothing is normalised."""
        if not isinstance(self.config.score_normalization, RunningNormalization):
            return {}
        return {"weight": self._moments.weight, "mean": self._moments.mean, "m2": self._moments.m2}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from a checkpoint, bit for bit; what one left behind is not wanted where nothing is normalised.

        Raises:
            CheckpointError: it was written by a run that did not normalise.
        """
        if not isinstance(self.config.score_normalization, RunningNormalization):
            return
        if missing := [name for name in ("weight", "mean", "m2") if name not in state]:
            raise CheckpointError(
                f"the running statistics of scores are {dict(state)} and lack {', '.join(missing)}: the checkpoint "
                'comes from a run with ppo.score_normalization.type = "none"; resume with that, or start anew'
            )
        self._moments = self._next = Moments(float(state["weight"]), float(state["mean"]), float(state["m2"]))
