"""How often and how many: the integers that follow from a configuration, each by one line of arithmetic."""

from common.config import RunConfig
from common.evaluate_config import EvaluateConfig
from common.ppo_config import PPOConfig
from learner.packing import rows_together


def chunks_per_update(config: RunConfig, ppo: PPOConfig) -> int:
    """Dispatches of one update, the last of which may be filled up."""
    return -(-ppo.trajectories_per_update // config.rollout.chunk_sequences)


def chunks_of_busiest(config: RunConfig, ppo: PPOConfig) -> int:
    """Chunks that one of equally fast workers generates, at most, in one update."""
    return -(-chunks_per_update(config, ppo) // config.rollout.workers)


def steps_per_update(ppo: PPOConfig) -> int:
    """Optimizer steps of one update."""
    return ppo.epochs * (ppo.trajectories_per_update // ppo.minibatch_sequences)


def microbatch_rows(ppo: PPOConfig) -> int:
    """Samples of one forward and backward pass, all as long as they may be."""
    if ppo.microbatch_tokens is not None:
        return min(ppo.minibatch_sequences, ppo.microbatch_tokens // longest_tokens(ppo))
    return ppo.microbatch_sequences or ppo.minibatch_sequences


def learns_on_cpu(config: RunConfig) -> bool:
    """As far as the configuration tells: a GPU that is asked for may turn out not to be there."""
    learner = config.learner
    return learner.device == "cpu" or (learner.device == "auto" and learner.num_gpus == 0)


def rows_without_gradients(config: RunConfig, ppo: PPOConfig) -> int:
    """Samples of one pass for old logprobs and values, all as long as they may be."""
    if ppo.microbatch_sequences or ppo.microbatch_tokens or not learns_on_cpu(config):
        return microbatch_rows(ppo)
    return min(ppo.trajectories_per_update, rows_together(ppo.minibatch_sequences, longest_tokens(ppo)))


def tokens_per_pass(ppo: PPOConfig) -> int:
    """Most tokens of one forward and backward pass, padding included."""
    most = ppo.minibatch_sequences * longest_tokens(ppo)
    if ppo.microbatch_tokens is not None:
        return min(most, ppo.microbatch_tokens)
    return microbatch_rows(ppo) * longest_tokens(ppo)


def longest_tokens(ppo: PPOConfig) -> int:
    """Tokens of the longest prompt and response together."""
    return ppo.prompt_tokens.max + ppo.response_tokens.max


def responses_after(evaluate: EvaluateConfig) -> int:
    """Of the evaluation after PPO: by the policy before and after it, and by others."""
    return (2 + len(evaluate.against)) * evaluate.prompts


def evaluations_in_training(ppo: PPOConfig, evaluate: EvaluateConfig) -> int:
    """One before the first update, and then every so many."""
    return 1 + ppo.updates // evaluate.every_updates if evaluate.every_updates else 0
