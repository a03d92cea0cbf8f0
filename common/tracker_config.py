"""Where a run's curves and texts go beside its own folder. Imports pydantic only."""

from typing import Literal

from pydantic import Field

from common.config_base import Config


class TensorboardConfig(Config):
    """Event files in `tensorboard/` of the run folder; needs the extra `tensorboard`."""

    samples: bool = True
    """Keep the best and worst texts of every update too."""


class WandbConfig(Config):
    """A run of Weights & Biases, in `wandb/` of the run folder and, if online, on its server; needs the extra `wandb`.

    The key is never here: wandb reads it from the environment variable WANDB_API_KEY.
    """

    project: str = Field(default="minichatgpt", min_length=1)
    """Project on the server."""
    entity: str | None = None
    """User or team on the server; None: the account's default."""
    mode: Literal["offline", "online", "disabled"] = "offline"
    """`offline` writes files, which `wandb sync` can upload later; `online` sends everything at once, configuration
    and texts included; `disabled` does nothing."""
    samples: bool = True
    """Keep the best and worst texts of every update too."""


class TrackersConfig(Config):
    """Trackers of experiments; each is on if its table is there, and none ever ends a run."""

    tensorboard: TensorboardConfig | None = None
    """TensorBoard."""
    wandb: WandbConfig | None = None
    """Weights & Biases."""
