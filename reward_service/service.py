"""One reward replica: a plain class that scores chunks, evaluates them, or computes reference logprobs: a call each."""

from collections.abc import Mapping

from common.errors import ConfigError
from common.records import JudgementChunk, ReferenceChunk, RolloutChunk, Stats
from reward_service.mixture import Mixture
from reward_service.reference import Reference


class RewardService:
    """A mixture of scorers and, where the reward service holds the reference, a frozen policy.

    Args:
        scorer: judges text.
        reference: None where the learner computes reference logprobs, or nobody does.
        evaluator: the same scorers and the judge; None where nothing is evaluated. It closes nothing of its own.
    """

    def __init__(self, scorer: Mixture, reference: Reference | None, evaluator: Mixture | None = None) -> None:
        self.scorer = scorer
        self._reference = reference
        self._evaluator = evaluator

    def score(self, chunk: RolloutChunk) -> tuple[JudgementChunk, Stats]:
        """Judge a chunk; never fails for what a scorer does, see Mixture.judge."""
        return self.scorer.judge(chunk)

    def evaluate(self, chunk: RolloutChunk) -> tuple[JudgementChunk, Stats]:
        """Judge answers to held-out prompts: the judge's numbers are among the parts and count nothing in the score."""
        if self._evaluator is None:
            raise ConfigError("this replica holds no judge; only a run with an [evaluate] table asks for one")
        return self._evaluator.judge(chunk)

    def reference(self, chunk: RolloutChunk) -> tuple[ReferenceChunk, Stats]:
        """Reference logprobs of a chunk."""
        if self._reference is None:
            raise ConfigError('this replica holds no reference; set ppo.reference = "service"')
        return self._reference.logprobs(chunk)

    def probe(self) -> Mapping[str, float]:
        """Classifiers' numbers for a fixed text, by part: the same in every replica that is sound.

        Raises:
            MemberFailedError: a scorer gives no finite number for it; names the scorer.
        """
        return (self._evaluator or self.scorer).probe()

    def close(self) -> None:
        """End the processes and connections of the scorers."""
        self.scorer.close()
