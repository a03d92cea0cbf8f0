"""How many bytes a configuration sends and writes: pure arithmetic over the size of the policy.

The preflight asks it what a run needs on disk; `minichatgpt config explain` shows all of it.
"""

from dataclasses import dataclass

from common.config import RunConfig
from common.placement_config import DType
from common.ppo_config import PPOConfig
from deploy.explain.counts import longest_tokens
from deploy.explain.figures import Figure, Group, counts
from deploy.preflight.finding import show_bytes

FLOAT_BYTES = 4  # published weights, logprobs and ids; the value head, whatever the policy's precision
_SAMPLE_BYTES = 8 * 6 + 1  # draw, sample, prompt, seed, step and score; truncated
_HEADER_BYTES = 100  # of safetensors, for each tensor


@dataclass(frozen=True, slots=True)
class PolicySize:
    """What is to be known of a policy; parameters that are tied count once."""

    parameters: int
    value_bytes: int
    """Of one parameter in the learner."""
    tensors: int
    trained: int
    """Parameters that the optimizer moves."""
    trained_tensors: int
    by_muon: int
    """Of the trained ones, those of hidden matrices under Muon: one number of state each, not two."""
    muon_tensors: int
    width: int
    """Of the residual stream; the value head has one parameter more."""
    trains_head: bool
    """Whether the value head learns: not with advantages that need none."""
    value_trunk: int
    """Parameters of the values' own network below the head; 0 where the policy's trunk serves both."""
    value_trunk_tensors: int
    vocabulary: int
    layers: int
    """Of the decoder."""

    @property
    def weights_bytes(self) -> int:
        """In the learner's precision."""
        return self.parameters * self.value_bytes

    @property
    def head(self) -> int:
        """Parameters of the value head, its own network's included."""
        return self.width + 1 + self.value_trunk

    @property
    def head_bytes(self) -> int:
        """The head is in float32, its network as the policy is."""
        return (self.width + 1) * FLOAT_BYTES + self.value_trunk * self.value_bytes

    @property
    def trained_head_bytes(self) -> int:
        """Of what learns of it."""
        return self.head_bytes if self.trains_head else 0

    @property
    def by_adamw(self) -> int:
        """Tensors, those of the value head included."""
        return self.trained_tensors - self.muon_tensors + (2 + self.value_trunk_tensors) * self.trains_head


@dataclass(frozen=True, slots=True)
class PassSize:
    """What passes through the policy hold."""

    cache_values: int
    """Numbers in the key-value cache per token, all layers."""
    live_bytes: int
    """What a pass over one microbatch of the longest samples keeps for its backward pass."""


def bytes_of(dtype: DType) -> int:
    """Of one number; where `auto` is left to the machine, of the larger one that it may be."""
    return 4 if dtype in ("auto", "float32") else 2


def optimizer_bytes(size: PolicySize) -> int:
    """AdamW keeps two numbers per trained parameter and a count per tensor, Muon one per weight of a hidden matrix."""
    of_policy = (2 * size.trained - size.by_muon) * size.value_bytes
    return of_policy + 2 * size.trained_head_bytes + size.by_adamw * FLOAT_BYTES


def checkpoint_bytes(size: PolicySize) -> int:
    """Weights, value head and optimizer state of one checkpoint; its few kilobytes of JSON are left out."""
    stored = size.tensors + 2 + size.value_trunk_tensors + 3 * size.by_adamw + size.muon_tensors
    return size.weights_bytes + size.head_bytes + optimizer_bytes(size) + stored * _HEADER_BYTES


def publish_bytes(size: PolicySize) -> int:
    """The flat buffer: the policy in float32, without value head."""
    return size.parameters * FLOAT_BYTES


def trajectory_file_bytes(config: RunConfig, ppo: PPOConfig) -> int:
    """One update's file, every prompt and response as long as it may be."""
    per_token = 2 + (ppo.reference == "service")  # id, logprob, reference logprob
    tokens = ppo.prompt_tokens.max + ppo.response_tokens.max * per_token
    parts = len(config.reward_service.scorers)
    if config.reward_service.has_model:
        parts += 1 + (ppo.score_baseline == "prompt")  # probability of the positive class; logit of the prompt
    sample = _SAMPLE_BYTES + 8 * parts + 8 * (1 + per_token)  # where each ragged column begins
    columns = 7 + parts + 2 * (1 + per_token)
    return ppo.trajectories_per_update * (sample + tokens * FLOAT_BYTES) + columns * _HEADER_BYTES


def kept_checkpoints(ppo: PPOConfig) -> int:
    """At the fullest moment."""
    return ppo.keep_last + ppo.keep_best + 1  # one is written before another goes


def copies_of_policy(config: RunConfig) -> int:
    """Policies in models/: of stages, and of a GGUF file that was unpacked."""
    return sum(stage is not None for stage in (config.pretrain, config.sft, config.ppo)) + (config.model.type == "gguf")


def models_bytes(config: RunConfig, size: PolicySize) -> Figure:
    """Policies that stages leave."""
    copies, one = copies_of_policy(config), size.weights_bytes
    cached = config.pretrain is not None
    because = f"{counts(copies, 'stage')} of {show_bytes(one)}" + (", and one in runs/.cache" if cached else "")
    return Figure("models_bytes", "policies in models/", (copies + cached) * one, because)


def disk(config: RunConfig, ppo: PPOConfig, size: PolicySize) -> Group:
    """What is written."""
    file, one, number = trajectory_file_bytes(config, ppo), checkpoint_bytes(size), kept_checkpoints(ppo)
    models = models_bytes(config, size)
    files, checkpoints = ppo.updates * file, number * one
    parts = (size.weights_bytes, size.head_bytes, optimizer_bytes(size))
    weights, head, state = map(show_bytes, parts)
    figures = [
        Figure(
            "trajectory_file_bytes",
            "trajectories of one update, at most",
            file,
            f"{ppo.trajectories_per_update:,} samples of {longest_tokens(ppo)} tokens, with logprobs"
            + (", the reference's" if ppo.reference == "service" else "")
            + " and scores",
        ),
        Figure(
            "trajectories_bytes", "trajectories of all updates, at most", files, f"× {counts(ppo.updates, 'update')}"
        ),
        Figure("checkpoint_bytes", "one checkpoint", one, f"weights {weights} + value head {head} + optimizer {state}"),
        Figure(
            "checkpoints_bytes",
            "checkpoints, at most",
            checkpoints,
            f"× {number}: keep_last {ppo.keep_last} + keep_best {ppo.keep_best} + one that is being written",
        ),
        models,
        Figure(
            "disk_bytes",
            "disk in all, at most",
            files + checkpoints + int(models.value or 0),
            "trajectories, checkpoints and policies; classifiers, logs and curves come on top"
            + (f"; of it, {show_bytes(checkpoints)} go to ppo.checkpoint_url" if ppo.checkpoint_url else ""),
        ),
    ]
    return Group("disk", "Disk", figures)


def traffic(config: RunConfig, size: PolicySize) -> Group:
    """What goes from process to process."""
    one, workers = publish_bytes(size), config.rollout.workers
    figures = [
        Figure("bytes_per_publish", "one publish of weights", one, f"{size.parameters:,} parameters × 4, as float32"),
        Figure(
            "publish_bytes_per_update",
            "weights that travel per update",
            workers * one,
            f"one copy to each of {counts(workers, 'worker')}; those on one node share it",
        ),
    ]
    return Group("traffic", "Weights on their way", figures)
