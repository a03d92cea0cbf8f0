"""One reward replica: a plain class that scores chunks and computes their reference logprobs, in calls of their own."""

from common.errors import ConfigError
from common.records import JudgementChunk, ReferenceChunk, RolloutChunk, Stats
from reward_service.reference import Reference
from reward_service.scorers import Scorer


class RewardService:
    """A scorer and, where the reward service holds the reference, a frozen policy.

    Args:
        scorer: judges text.
        reference: None where the learner computes reference logprobs, or nobody does.
    """

    def __init__(self, scorer: Scorer, reference: Reference | None) -> None:
        self.scorer = scorer
        self._reference = reference

    def score(self, chunk: RolloutChunk) -> tuple[JudgementChunk, Stats]:
        """Judge a chunk."""
        return self.scorer.judge(chunk)

    def reference(self, chunk: RolloutChunk) -> tuple[ReferenceChunk, Stats]:
        """Reference logprobs of a chunk."""
        if self._reference is None:
            raise ConfigError('this replica holds no reference; set ppo.reference = "service"')
        return self._reference.logprobs(chunk)
