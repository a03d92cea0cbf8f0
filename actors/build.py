"""From a configuration to a rollout worker, in the process that calls this."""

from collections.abc import Callable

from actors.engine import SamplingEngine
from actors.worker import RolloutWorker
from common.config import RunConfig
from common.errors import ConfigError
from common.flat_parameters import Buffer
from common.modeling import load_policy, resolve_device, resolve_dtype
from common.records import ModelPaths, WeightsHandle
from common.text import eos_token_ids, load_tokenizer


def build_worker(
    config: RunConfig, paths: ModelPaths, *, fetch: Callable[[WeightsHandle], Buffer], name: str
) -> RolloutWorker:
    """A worker with its own copy of the policy; the weights of its first request replace those on disk."""
    placement = config.rollout
    device = resolve_device(placement.device, placement.num_gpus)
    policy = load_policy(paths.policy, dtype=resolve_dtype(placement.dtype, device, serves=True))
    policy.to(device)
    check_length(config, policy.config.get_text_config().max_position_embeddings)
    engine = SamplingEngine(
        policy,
        eos_token_ids(paths.policy, load_tokenizer(paths.policy)),
        kind=placement.engine,
        batch_sequences=placement.batch_sequences,
        continuous=config.ppo is not None and config.ppo.max_staleness > 0,
    )
    return RolloutWorker(engine, fetch=fetch, name=name)


def check_length(config: RunConfig, limit: int) -> None:
    """Raise ConfigError if prompt and response do not fit a model of `limit` positions."""
    assert config.ppo is not None, "workers are of a PPO stage"
    longest = config.ppo.prompt_tokens.max + config.ppo.response_tokens.max
    if longest > limit:
        raise ConfigError(
            f"prompts of {config.ppo.prompt_tokens.max} and responses of {config.ppo.response_tokens.max} tokens do "
            f"not fit the model's {limit} positions; shorten ppo.response_tokens"
        )
