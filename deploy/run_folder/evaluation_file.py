"""`evaluations.jsonl`, read back, and what the summary says of it. `deploy/evaluation/evaluations.py` writes it."""

from collections.abc import Mapping
from pathlib import Path

from pydantic import JsonValue, TypeAdapter

from deploy.run_folder.checked_json import Numbers, Shape, read_jsonl


class EvaluatedText(Shape):
    """One held-out prompt as it was answered in an evaluation while PPO learns."""

    prompt: str
    response: str
    score: float | None = None
    judge: float | None = None
    """Probability of the positive class."""


class EvaluationLine(Shape):
    """One line of `evaluations.jsonl`: held-out prompts, answered while PPO learns."""

    step: int
    """Updates behind the weights; 0: before PPO."""
    asked: dict[str, JsonValue] = {}
    """What decides the judge's numbers beside the policy: those of lines that differ in it do not compare."""
    prompts: int = 0
    """How many were asked; those without a score are missing below."""
    numbers: Numbers = {}
    over_optimised: bool = False
    """Whether the alarm was on."""
    draws: tuple[int, ...] = ()
    """Which prompts have a score."""
    rewards: tuple[float, ...] = ()
    """By prompt, as `draws`."""
    judged: tuple[float, ...] = ()
    """The judge's logits, as `draws`."""
    texts: tuple[EvaluatedText, ...] = ()
    seconds: float | None = None

    def scores_by_draw(self) -> dict[int, tuple[float, float]]:
        """Reward and judge's logit of each prompt that has a score."""
        return dict(zip(self.draws, zip(self.rewards, self.judged, strict=True), strict=True))


class Rival(Shape):
    """Another policy that answered the same held-out prompts, and how this run's did against it."""

    win_rate: float | None = None
    """Share of prompts on which the judge prefers this run's response."""
    win_rate_ci95: tuple[float, float] | None = None
    prompts: int | None = None
    """That both have a score for."""
    judge_p_positive: float | None = None
    """The rival's."""


class OverOptimisation(Shape):
    """What the alarm said while PPO learnt."""

    updates: tuple[int, ...] = ()
    """After which it was on."""
    at_the_end: bool = False
    gap: float | None = None
    """By how many standard deviations the reward is ahead of the judge at the end."""


def differences(one: Mapping[str, JsonValue], other: Mapping[str, JsonValue]) -> list[str]:
    """In what two evaluations were not asked alike, by the names of `EvaluationLine.asked`."""
    return [name for name in {**one, **other} if name not in one or name not in other or one[name] != other[name]]


def read_evaluations(folder: Path) -> list[EvaluationLine]:
    """The evaluations while PPO learnt, in order of steps; raises DataError if a line cannot be understood."""
    lines = read_jsonl(folder / "evaluations.jsonl", TypeAdapter(EvaluationLine))
    return sorted(lines, key=lambda line: line.step)
