"""What every scorer is: texts in, for each text a number or the reason why there is none. Mixed by `mixture.py`."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Reason = Literal["reward_nonfinite", "reward_shape", "reward_error", "reward_timeout"]

MAX_SCORE = 3.4e38
"""The learner computes in float32: what is larger is infinite there."""


@dataclass(frozen=True, slots=True)
class Text:
    """What is judged."""

    prompt: str
    """Without what a chat template writes."""
    response: str
    whole: str
    """Prompt and response together."""


@dataclass(frozen=True, slots=True)
class Scored:
    """A scorer's number for one text."""

    value: float
    """What counts in the mixture."""
    parts: Mapping[str, float]
    """What is kept in the record, by name."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a text has no number."""

    reason: Reason
    detail: str


Outcome = Scored | Failure


class Scorer(Protocol):
    """One term of the mixture."""

    name: str
    version: str
    """Changes with what scores, as far as that can be known from here."""
    is_deterministic: bool
    """Whether two replicas of equal weights give equal numbers, so that they can be compared."""

    def score(self, texts: Sequence[Text], deadline: float) -> list[Outcome]:
        """One outcome per text, in order, whatever happens; a text's does not depend on its neighbours.

        Args:
            texts: at least one.
            deadline: of `time.monotonic`; texts that are not scored by then fail with `reward_timeout`.
        """

    def close(self) -> None:
        """End what was started."""


def checked(outcome: Outcome) -> Outcome:
    """The outcome, or a failure where one of its numbers is not finite."""
    if isinstance(outcome, Scored):
        for name, number in {"score": outcome.value, **outcome.parts}.items():
            if not is_finite(number):
                return Failure("reward_nonfinite", f"{name} is {number}")
    return outcome


def is_finite(number: float) -> bool:
    """Whether the learner can compute with it."""
    return math.isfinite(number) and abs(number) <= MAX_SCORE


def read_scores(name: str, scores: object, num_texts: int) -> list[Outcome] | Failure:
    """An answer that came as JSON, to outcomes; a failure where it cannot be said which text has which number.

    Args:
        name: of the scorer, and of its part.
        scores: what should be a list of numbers; null where a text could not be scored.
        num_texts: how many there should be.
    """
    if not isinstance(scores, list):
        return Failure("reward_shape", f"scores must be a list of {num_texts} numbers, got {type(scores).__name__}")
    if len(scores) != num_texts:
        return Failure("reward_shape", f"got {len(scores)} scores for {num_texts} texts")
    return [_read_one(name, score) for score in scores]


def _read_one(name: str, score: object) -> Outcome:
    if score is None:
        return Failure("reward_error", "no score was given")
    if isinstance(score, bool) or not isinstance(score, int | float):
        return Failure("reward_shape", f"a score must be a number, got {type(score).__name__}")
    if isinstance(score, int) and abs(score) > MAX_SCORE:
        return Failure("reward_nonfinite", "an integer beyond float32")
    return checked(Scored(float(score), {name: float(score)}))
