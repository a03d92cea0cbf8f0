"""Guard rails: what counts as going wrong while PPO learns, and what is done then. Imports pydantic only.

A guard compares one measure of each update with its limit. What it may do changes what comes after, never what an
update computes, so all of it may differ when a run goes on. docs/guards.md tells when to use what.
"""

from typing import Annotated, Literal

from pydantic import Field

from common.config_base import CHANGEABLE, Config

Action = Literal["off", "warn", "lower_learning_rate", "roll_back", "stop"]


class Guard(Config):
    """What all guards have."""

    action: Annotated[Action, CHANGEABLE] = "warn"
    """`off`: it does not look. `warn`: an alarm in log, metrics and report, and no more. `lower_learning_rate`: times
    guards.lower_factor. `roll_back`: back to a checkpoint of before, and on from there with other prompts. `stop`: the
    run ends, with a checkpoint."""
    patience_updates: Annotated[int, CHANGEABLE] = Field(default=3, ge=1)
    """Updates in a row beyond the limit that raise the alarm, and within it that clear it: one alone may be noise."""


class KLGuard(Guard):
    """The policy runs away from the reference."""

    max_targets: Annotated[float, CHANGEABLE] = Field(default=3.0, gt=1)
    """Where ppo.kl is adaptive: most KL, as a multiple of the target in force, in the measure of the target."""
    max_nats: Annotated[float, CHANGEABLE] = Field(default=30.0, gt=0)
    """Where there is no target: most kl_seq_sum, in nats per response."""


class EntropyGuard(Guard):
    """The policy says the same to everybody."""

    min_fraction: Annotated[float, CHANGEABLE] = Field(default=0.3, gt=0, lt=1)
    """Least entropy, as a share of its mean over the first updates."""


class ClipFractionGuard(Guard):
    """The steps of an update are too large for what it learns from."""

    max_fraction: Annotated[float, CHANGEABLE] = Field(default=0.3, gt=0, lt=1)
    """Most clip_fraction: share of tokens whose gradient the ratio clip took."""


class RepetitionGuard(Guard):
    """Responses repeat themselves."""

    max_fraction: Annotated[float, CHANGEABLE] = Field(default=0.3, gt=0, lt=1)
    """Most repetition: share of a response's trigrams that it held before."""


class LengthGuard(Guard):
    """Responses become much longer or shorter: length may have become a way to score."""

    max_ratio: Annotated[float, CHANGEABLE] = Field(default=2.0, gt=1)
    """Mean response length may be 1 / max_ratio to max_ratio times its mean over the first updates."""


class JudgeGapGuard(Config):
    """The policy pleases the reward model and no longer the judge, by the alarm of evaluate.alarm."""

    action: Annotated[Action, CHANGEABLE] = "warn"
    """As in the other guards."""
    patience_evaluations: Annotated[int, CHANGEABLE] = Field(default=1, ge=1)
    """Evaluations in a row, while PPO learns, in which that alarm is on; its own patience, evaluate.alarm.in_a_row,
    comes before."""


class GuardsConfig(Config):
    """Guard rails while PPO learns."""

    kl: KLGuard = KLGuard()
    """On the KL to the reference."""
    entropy: EntropyGuard = EntropyGuard()
    """On the policy's entropy."""
    clip_fraction: ClipFractionGuard = ClipFractionGuard()
    """On the share of clipped tokens."""
    repetition: RepetitionGuard = RepetitionGuard()
    """On repeated trigrams."""
    length: LengthGuard = LengthGuard()
    """On the length of responses."""
    judge_gap: JudgeGapGuard = JudgeGapGuard()
    """On reward and judge of the evaluations while PPO learns."""
    baseline_updates: Annotated[int, CHANGEABLE] = Field(default=5, ge=1)
    """First updates of the run, whose mean is what entropy and length are compared with."""
    lower_factor: Annotated[float, CHANGEABLE] = Field(default=0.5, gt=0, lt=1)
    """`lower_learning_rate` multiplies the rate by it."""
    max_rollbacks: Annotated[int, CHANGEABLE] = Field(default=2, ge=0)
    """Rollbacks of a run; the guard that wants one more stops it instead."""
    cooldown_updates: Annotated[int, CHANGEABLE] = Field(default=5, ge=0)
    """Updates after a rate was lowered or a rollback in which no guard does either again: that takes time to tell."""

    def check(self, *, has_reference: bool, is_evaluated: bool) -> None:
        """Raise ValueError if a guard is to act on what is never measured.

        Args:
            has_reference: whether KL is measured.
            is_evaluated: whether PPO is evaluated while it learns.
        """
        if self.kl.action not in ("off", "warn") and not has_reference:
            raise ValueError(
                f'guards.kl.action="{self.kl.action}" with ppo.reference="none": KL is never measured; set the action '
                'to "off", or ppo.reference to "service"'
            )
        if self.judge_gap.action not in ("off", "warn") and not is_evaluated:
            raise ValueError(
                f'guards.judge_gap.action="{self.judge_gap.action}", but PPO is not evaluated while it learns; set '
                'evaluate.every_updates (10, say), or the action to "off"'
            )
