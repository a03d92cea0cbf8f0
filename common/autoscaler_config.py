"""Settings of the rollout autoscaler: when it asks for more or fewer rollout workers. Imports pydantic only.

The number of workers changes no result, so all of it may differ when a run goes on. docs/autoscaler.md tells how it
decides.
"""

from typing import Annotated

from pydantic import Field, model_validator

from common.config_base import CHANGEABLE, Config
from common.placement_config import RolloutConfig


class AutoscalerConfig(Config):
    """Changes the number of rollout workers while PPO learns, by who waits for whom."""

    enabled: Annotated[bool, CHANGEABLE] = False
    """Whether it runs. It rests with `--local`, where all workers share one thread."""
    min_workers: Annotated[int, CHANGEABLE] = Field(default=1, ge=1)
    """Fewest workers that it asks for."""
    max_workers: Annotated[int, CHANGEABLE] = Field(default=8, ge=1)
    """Most workers that it asks for; nor more than there are chunks in an update, for others would have nothing to
    do."""
    scale_up_wait_fraction: Annotated[float, CHANGEABLE] = Field(default=0.5, gt=0, lt=1)
    """Share of an update in which the learner may wait for samples; where it waits longer, workers are added."""
    scale_down_wait_fraction: Annotated[float, CHANGEABLE] = Field(default=0.4, gt=0, lt=1)
    """Workers are taken away where the learner would still wait no longer than this share without them. Below
    scale_up_wait_fraction: what lies between is left alone."""
    min_gain_fraction: Annotated[float, CHANGEABLE] = Field(default=0.05, gt=0, lt=1)
    """Workers are added only while an update takes longer, by more than this share, than with the most that may be;
    they are taken away where it would take longer by no more than half of it."""
    confirm_updates: Annotated[int, CHANGEABLE] = Field(default=3, ge=1)
    """Updates in a row that must want the same direction: one alone may be noise."""
    up_cooldown_s: Annotated[float, CHANGEABLE] = Field(default=60.0, ge=0)
    """Seconds after any change of the number, a person's too, in which no workers are added."""
    down_cooldown_s: Annotated[float, CHANGEABLE] = Field(default=300.0, ge=0)
    """Seconds after any change of the number, a person's too, in which none are taken away."""
    retry_after_s: Annotated[float, CHANGEABLE] = Field(default=1800.0, ge=0)
    """Workers that saved less than half of what was foreseen are taken away again, as where all share the same CPUs;
    seconds until it tries again, unless somebody changes the number before. So long it also leaves workers alone that
    were given up."""
    max_step_workers: Annotated[int, CHANGEABLE] = Field(default=4, ge=1)
    """Most workers that one decision adds or takes away."""

    @model_validator(mode="after")
    def _bounds_fit(self) -> "AutoscalerConfig":
        if self.min_workers > self.max_workers:
            raise ValueError(f"min_workers={self.min_workers} is more than max_workers={self.max_workers}; lower it")
        if self.scale_down_wait_fraction >= self.scale_up_wait_fraction:
            raise ValueError(
                f"scale_down_wait_fraction={self.scale_down_wait_fraction:g} must be below scale_up_wait_fraction="
                f"{self.scale_up_wait_fraction:g}, or workers come and go; try {0.8 * self.scale_up_wait_fraction:g}"
            )
        return self

    def check(self, rollout: RolloutConfig) -> None:
        """Raise ValueError if it is enabled and its bounds do not hold what `[rollout]` says."""
        if not self.enabled:
            return
        if self.min_workers < rollout.min_workers:
            raise ValueError(
                f"autoscaler.min_workers={self.min_workers} is fewer than rollout.min_workers={rollout.min_workers}, "
                f"below which the run stops; set autoscaler.min_workers to {rollout.min_workers} or more"
            )
        if not self.min_workers <= rollout.workers <= self.max_workers:
            raise ValueError(
                f"rollout.workers={rollout.workers}, with which the run starts, is not within autoscaler.min_workers="
                f"{self.min_workers} and autoscaler.max_workers={self.max_workers}; change one of the three"
            )
