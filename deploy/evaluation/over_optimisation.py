"""When the policy pleases the reward model and no longer the judge: a pure function of the evaluations so far.

Optimised far enough, every reward model parts from what it stands for: the proxy rises on while the gold score stalls
and then falls (Gao, Schulman, Hilton, arXiv:2210.10760). The judge, which training never sees, takes the place of the
gold score here. Both are counted in standard deviations of their own scores before PPO, so that their scales compare.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from common.evaluate_config import OverOptimisationConfig
from deploy.run_folder.evaluation_file import EvaluationLine


@dataclass(frozen=True, slots=True)
class Point:
    """One evaluation: how far reward and judge have risen above their means before PPO, in standard deviations."""

    step: int
    reward_z: float
    judge_z: float

    @property
    def gap(self) -> float:
        """By how much the reward is ahead of the judge."""
        return self.reward_z - self.judge_z


@dataclass(frozen=True, slots=True)
class Divergence:
    """Reward and judge part since an earlier evaluation."""

    since: int
    """Update of the earlier evaluation."""
    reward_rise: float
    """In standard deviations, as `judge_rise`."""
    judge_rise: float


def divergence(points: Sequence[Point], config: OverOptimisationConfig) -> Divergence | None:
    """Since when the last evaluation's reward has risen without the judge; of several, where the gap grew most.

    With Δ from an earlier evaluation to the last one: Δreward ≥ reward_rise and Δjudge ≤ judge_share · Δreward.
    """
    if not points:
        return None
    last = points[-1]
    found = [
        Divergence(point.step, last.reward_z - point.reward_z, last.judge_z - point.judge_z) for point in points[:-1]
    ]
    found = [
        one
        for one in found
        if one.reward_rise >= config.reward_rise and one.judge_rise <= config.judge_share * one.reward_rise
    ]
    return max(found, key=lambda one: one.reward_rise - one.judge_rise, default=None)


def is_over_optimised(points: Sequence[Point], config: OverOptimisationConfig) -> bool:
    """Whether each of the last `in_a_row` evaluations diverges from an earlier one."""
    ends = range(len(points) - config.in_a_row + 1, len(points) + 1)
    return all(end > 0 and divergence(points[:end], config) is not None for end in ends)


def point_of(line: EvaluationLine) -> Point | None:
    """What the alarm looks at; None where nothing is known of the policy before PPO."""
    reward_z, judge_z = line.numbers.get("reward_z"), line.numbers.get("judge_z")
    return None if reward_z is None or judge_z is None else Point(line.step, reward_z, judge_z)
