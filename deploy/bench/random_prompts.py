"""Prompts of random ids, for benchmarks in which nobody reads them."""

import numpy as np

from actors.prompts import PromptStream
from common.config import RunConfig


def prompts_of(config: RunConfig) -> PromptStream:
    """Random ids of the lengths that the configuration asks for."""
    assert config.ppo is not None, "it is a PPO run"
    random = np.random.default_rng(config.seed)
    texts = [random.integers(0, 1000, config.ppo.prompt_tokens.max + 1).astype(np.int32) for _ in range(1000)]
    return PromptStream(
        texts, prompt_tokens=config.ppo.prompt_tokens, response_tokens=config.ppo.response_tokens, seed=config.seed
    )
