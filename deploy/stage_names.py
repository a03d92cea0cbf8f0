"""Which stages a run may have, in order, and which of them a configuration has work for.

Imports nothing that is slow: `early_start.py` asks before torch is there. What the stages do is in `pipeline.py`.
"""

from common.config import RunConfig
from common.errors import ConfigError

STAGES = ("pretrain", "sft", "reward_model", "judge", "ppo", "evaluate")
"""Those that have a table in the configuration."""


def is_work(config: RunConfig, stage: str) -> bool:
    """Whether the configuration has something to do in a stage: a classifier that is used as it is has none."""
    if stage == "base":
        return config.model.type == "gguf"
    table = getattr(config, stage)
    return table is not None and (stage not in ("reward_model", "judge") or table.training is not None)


def stages_of(config: RunConfig) -> list[str]:
    """All that there is to be done, in order."""
    return [stage for stage in ("base", *STAGES) if is_work(config, stage)]


def check_again(config: RunConfig, again: frozenset[str]) -> None:
    """Raise ConfigError if `--again` names something that is no stage of the configuration."""
    stages = stages_of(config)
    if unknown := sorted(again - set(stages)):
        raise ConfigError(f"--again {unknown[0]}: no stage of this configuration; it has {', '.join(stages)}")
