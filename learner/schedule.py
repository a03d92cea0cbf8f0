"""The learning rate of each update, as a share of its peak. Pure."""

import math

from common.ppo_config import PPOConfig


def learning_rate_scale(step: int, config: PPOConfig) -> float:
    """Share of the peak rate in the update after `step` updates: linear warm-up, times the fall to the final share.

        warm-up    min(1, (step + 1) / (lr_warmup_updates + 1))
        linear     1 - (1 - f) * progress                            f = lr_final_fraction
        cosine     f + (1 - f) * (1 + cos(pi * progress)) / 2        progress = step / (updates - 1)

    It follows from the step alone, so that a run that is resumed goes on as it would have.
    """
    warmup = min(1.0, (step + 1) / (config.lr_warmup_updates + 1))
    progress = step / max(1, config.updates - 1)
    final = config.lr_final_fraction
    match config.lr_schedule:
        case "constant":
            return warmup
        case "linear":
            return warmup * (1 - (1 - final) * progress)
        case "cosine":
            return warmup * (final + (1 - final) * 0.5 * (1 + math.cos(math.pi * progress)))
