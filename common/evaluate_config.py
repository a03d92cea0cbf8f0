"""What is measured on held-out prompts: after PPO, and while it learns. Imports pydantic only."""

from typing import Annotated

from pydantic import Field

from common.config_base import CHANGEABLE, Config


class OverOptimisationConfig(Config):
    """When it is said that the policy pleases the reward model and no longer the judge (arXiv:2210.10760).

    Both are measured in standard deviations of their own scores before PPO. The alarm stops nothing.
    """

    reward_rise: Annotated[float, CHANGEABLE] = Field(default=0.5, gt=0)
    """Rise of the reward since some earlier evaluation from which on the judge is asked for its share, in standard
    deviations."""
    judge_share: Annotated[float, CHANGEABLE] = Field(default=0.1, ge=0, lt=1)
    """Least share of that rise that the judge must follow, in its own standard deviations; 0: it may not fall."""
    in_a_row: Annotated[int, CHANGEABLE] = Field(default=2, ge=1)
    """Evaluations in a row in which it must be so: one alone may be noise."""


class EvaluateConfig(Config):
    """Held-out prompts, answered before and after PPO and, if wanted, while it learns; scored by reward and judge."""

    prompts: int = Field(default=512, ge=1)
    """Held-out prompts; one response each, whatever ppo.samples_per_prompt."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling (arXiv:1904.09751) of these responses, at ppo.temperature. Below 1, kl_* is that of the
    truncated distribution to the whole reference."""
    shown: int = Field(default=12, ge=0)
    """Prompts whose texts are kept: before and after in samples.jsonl, while PPO learns in evaluations.jsonl."""
    against: list[str] = []
    """Other policies that answer the same prompts after PPO: names or folders of runs, model folders, hub names."""
    every_updates: Annotated[int, CHANGEABLE] = Field(default=0, ge=0)
    """Updates between two evaluations while PPO learns, and one before the first; 0: none."""
    prompts_in_training: Annotated[int | None, CHANGEABLE] = Field(default=None, ge=1)
    """Held-out prompts of an evaluation while PPO learns, the first of them; None: as many as `prompts`."""
    alarm: OverOptimisationConfig = OverOptimisationConfig()
    """When over-optimisation is reported, while PPO learns."""

    @property
    def num_in_training(self) -> int:
        """Prompts of an evaluation while PPO learns."""
        return self.prompts if self.prompts_in_training is None else self.prompts_in_training
