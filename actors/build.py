"""From a configuration to a rollout worker and to the prompts that feed it, in the process that calls this."""

from collections.abc import Callable

from actors.engine import SamplingEngine
from actors.prompts import PromptStream
from actors.worker import RolloutWorker
from common.config import RunConfig
from common.corpus import Which, load_corpus, split
from common.errors import ConfigError, DataError
from common.modeling import load_policy, resolve_device
from common.records import ModelPaths, WeightsHandle
from common.text import encode, eos_token_ids, load_tokenizer
from common.weights import Buffer


def build_worker(
    config: RunConfig, paths: ModelPaths, *, fetch: Callable[[WeightsHandle], Buffer], name: str
) -> RolloutWorker:
    """A worker with its own copy of the policy; the weights of its first request replace those on disk."""
    placement = config.rollout
    policy = load_policy(paths.policy, dtype=placement.dtype)
    policy.to(resolve_device(placement.device, placement.num_gpus))
    _check_length(config, policy.config.get_text_config().max_position_embeddings)
    engine = SamplingEngine(policy, eos_token_ids(load_tokenizer(paths.policy)))
    return RolloutWorker(engine, fetch=fetch, name=name)


def _check_length(config: RunConfig, limit: int) -> None:
    assert config.ppo is not None, "workers are of a PPO stage"
    longest = config.ppo.prompt_tokens.max + config.ppo.response_tokens.max
    if longest > limit:
        raise ConfigError(
            f"prompts of {config.ppo.prompt_tokens.max} and responses of {config.ppo.response_tokens.max} tokens do "
            f"not fit the model's {limit} positions; shorten ppo.response_tokens"
        )


def build_prompts(config: RunConfig, paths: ModelPaths, *, heldout: bool = False) -> PromptStream:
    """Prompts from the data that the PPO stage names: its training split, or the held-out one for evaluation."""
    ppo = config.ppo
    assert ppo is not None, "prompts are of a PPO stage"
    tokenizer = load_tokenizer(paths.policy)
    which: Which = "heldout" if heldout else "train"
    texts = [
        text
        for name in ppo.data
        for text in split(load_corpus(config.data[name]), config.heldout_fraction, which).texts
    ]
    ids = encode(tokenizer, texts, max_tokens=ppo.prompt_tokens.max + 1)
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id not in eos_token_ids(tokenizer):
        ids = [i for i in ids if tokenizer.unk_token_id not in i]
        if not ids:
            raise DataError(
                f"every text of {', '.join(ppo.data)} begins with a word that the policy's vocabulary of "
                f"{len(tokenizer)} lacks; choose other data, or raise model.vocabulary_size"
            )
    return PromptStream(
        ids,
        prompt_tokens=ppo.prompt_tokens,
        response_tokens=ppo.response_tokens,
        seed=config.seed + (1 << 32 if heldout else 0),
    )
