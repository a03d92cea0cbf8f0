"""How scores are brought to the scale on which PPO learns. Imports pydantic only."""

from typing import Annotated, Literal

from pydantic import Field

from common.config_base import Config


class NoNormalization(Config):
    """Scores stay as the reward service gave them."""

    type: Literal["none"] = "none"
    """Tag of the union."""


class RunningNormalization(Config):
    """Scores are divided by their running standard deviation, over all updates so far and the one at hand.

    The statistics are part of every checkpoint, and move only with updates that had a finite step.
    """

    type: Literal["running"] = "running"
    """Tag of the union."""
    subtract_mean: bool = False
    """Subtract the running mean first. A choice of its own, for it moves 0: what clipping, a discount below 1 and
    `bootstrap_truncated` call good or bad is then better or worse than usual."""
    decay: float = Field(default=1.0, gt=0, le=1)
    """At each update all earlier scores lose this factor of their weight: 1 counts every score of the run alike, 0.9
    halves the weight of a score in 7 updates."""


ScoreNormalization = Annotated[NoNormalization | RunningNormalization, Field(discriminator="type")]
