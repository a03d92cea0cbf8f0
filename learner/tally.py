"""Counts what an update saw, over its microbatches, and turns sums into the metrics of the report."""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from common.records import Ids, Sample, Trajectory

SHOWN = 2
"""Best and worst texts kept of each update."""


class Tally:
    """Sums over live tokens of all optimizer steps of an update."""

    def __init__(self) -> None:
        self.tokens = 0
        self.steps = 0
        self.skipped = 0
        """Steps left out because loss or gradient was not finite; nothing of them is in the sums."""
        self.is_stopped_early = False
        """Minibatches were left out, for the policy had moved far enough."""
        self.grad_norm_sum = 0.0
        self.last: dict[str, float] = {}
        self._sums: dict[str, float] = {}
        self._max: dict[str, float] = {}

    def add(self, **seen: Tensor) -> None:
        """Add a microbatch's metrics: names that end in `_max` keep the largest, all others add up."""
        for name, value in seen.items():
            number = float(value)
            if name.endswith("_max"):
                self._max[name] = max(self._max.get(name, number), number)
            else:
                self._sums[name] = self._sums.get(name, 0.0) + number

    def total(self, name: str) -> float:
        """Sum of a metric so far."""
        return self._sums.get(name, 0.0)

    def include(self, other: "Tally") -> None:
        """Add what another one counted."""
        self.tokens += other.tokens
        self.steps += other.steps
        self.skipped += other.skipped
        self.grad_norm_sum += other.grad_norm_sum
        for name, number in other._sums.items():
            self._sums[name] = self._sums.get(name, 0.0) + number
        for name, number in other._max.items():
            self._max[name] = max(self._max.get(name, number), number)

    def means(self) -> dict[str, float]:
        """Means per token, extremes, and counts of steps; the counts alone where no step was taken."""
        per_token = {
            "policy_loss": "policy_loss_sum",
            "value_loss": "value_loss_sum",
            "entropy": "entropy_sum",
            "approx_kl": "approx_kl_k3_sum",
            "clip_fraction": "num_clipped",
            "dual_clip_fraction": "num_dual_clipped",
            "value_clip_fraction": "num_value_clipped",
            "kl_loss": "ref_kl_k2_sum",
        }
        means = {name: self._sums[key] / max(1, self.tokens) for name, key in per_token.items() if key in self._sums}
        return (
            means
            | self._max
            | self.last
            | ({"grad_norm": self.grad_norm_sum / self.steps} if self.steps else {})
            | {
                "nonfinite_steps": float(self.skipped),
                "optimizer_steps": float(self.steps),
                "early_stopped": float(self.is_stopped_early),
            }
        )


def score_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Scores, lengths and ends of an update's samples."""
    scores = np.array([t.judgement.score for t in trajectories])
    lengths = np.array([len(t.rollout.response_ids) for t in trajectories])
    return {
        "score_mean": float(scores.mean()),
        "score_std": float(scores.std()),
        "score_min": float(scores.min()),
        "score_max": float(scores.max()),
        "response_tokens_mean": float(lengths.mean()),
        "response_tokens_max": float(lengths.max()),
        "truncated_fraction": float(np.mean([t.rollout.finish == "length" for t in trajectories])),
        "ended_fraction": float(np.mean([t.rollout.finish == "stop" for t in trajectories])),
        "repetition": float(np.mean([repetition(t.rollout.response_ids) for t in trajectories])),
        "trajectories": float(len(trajectories)),
        "response_tokens": float(lengths.sum()),
    }


def repetition(response_ids: Ids) -> float:
    """Share of a response's trigrams of token ids that occurred in it before; 0 for fewer than 3 tokens.

    Example: of `a b c a b c` the trigrams are abc, bca, cab and abc again: 1 of 4.
    """
    num_trigrams = len(response_ids) - 2
    if num_trigrams < 1:
        return 0.0
    different = np.unique(np.lib.stride_tricks.sliding_window_view(response_ids, 3), axis=0)
    return 1 - len(different) / num_trigrams


def extremes(trajectories: Sequence[Trajectory]) -> tuple[Sample, ...]:
    """The best and the worst texts of an update."""
    ranked = sorted(trajectories, key=lambda t: t.judgement.score)

    def sample(trajectory: Trajectory, kind: str) -> Sample:
        rollout, ref = trajectory.rollout, trajectory.ref_logprobs
        return Sample(
            kind="best" if kind == "best" else "worst",
            draw_index=rollout.draw_index,
            prompt_ids=trajectory.prompt.token_ids,
            response_ids=rollout.response_ids,
            score=trajectory.judgement.score,
            kl_seq_sum=float((rollout.logprobs - ref).sum()) if ref is not None else None,
        )

    best = [sample(t, "best") for t in ranked[::-1][:SHOWN]]
    worst = [sample(t, "worst") for t in ranked[:SHOWN]]
    return (*best, *worst)
