"""Every number of the PPO stage, with its unit and its source; docs/ppo.md has the formulas. Imports pydantic only."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from common.config_base import CHANGEABLE, Config
from common.data_config import LengthRange, Weights, check_weights
from common.kl_config import FixedKL, KLPenalty, check_kl
from common.optimizer_config import AdamW, Optimizer
from common.score_config import NoNormalization, ScoreNormalization


class PPOConfig(Config):
    """Proximal policy optimisation from rewards (arXiv:1707.06347; for language models arXiv:1909.08593)."""

    # --- what is sampled
    data: list[str] = Field(min_length=1)
    """Named data sources whose training split gives the prompts."""
    weights: Weights = {}
    """How often each source is drawn from, by name, as `{ a = 3, b = 1 }`; each goes through epochs of its own. None:
    every text once an epoch."""
    updates: int = Field(ge=1)
    """PPO updates; each one collects, judges, trains and publishes."""
    trajectories_per_update: int = Field(default=256, ge=1)
    """Samples of one update: prompts times samples_per_prompt."""
    samples_per_prompt: int = Field(default=1, ge=1)
    """Responses to each prompt, K, with noise of their own: the group of a prompt. It is judged, dropped and replaced
    as a whole."""
    prompt_tokens: LengthRange = LengthRange(min=2, max=8)
    """A prompt is the first n tokens of a text; those of demonstrations are whole, and left out above `max`."""
    response_tokens: LengthRange = LengthRange(min=16, max=16)
    """Most tokens of a response; it ends earlier at an EOS token."""
    temperature: float = Field(default=1.0, gt=0)
    """Logits are divided by it in sampling, in the learner and in the reference alike."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling (arXiv:1904.09751) for training: only 1, all tokens, makes ratio and KL right, so that less is
    refused; evaluation and chat may take less."""
    max_staleness: int = Field(default=0, ge=0)
    """Updates that generation may run ahead of learning. 0: they take turns, every sample is of the weights that are
    trained (strictly on-policy) and a run has the same bytes whatever workers do. 1 or more: both work at once, and
    samples are that many updates old, or more where a response took long."""

    # --- what is optimised
    epochs: int = Field(default=4, ge=1)
    """Passes over the samples of an update."""
    minibatch_sequences: int = Field(default=64, ge=1)
    """Samples of one optimizer step."""
    microbatch_sequences: int | None = Field(default=None, ge=1)
    """Samples of one forward and backward pass; gradients add up to the minibatch's. None: the whole minibatch,
    and on a CPU small ones together where no gradient is taken."""
    microbatch_tokens: int | None = Field(default=None, ge=2)
    """Instead of microbatch_sequences: most tokens, padding included, of one forward and backward pass. Samples of
    like length go together, and the gradient is the same. None: by microbatch_sequences."""
    optimizer: Optimizer = AdamW(lr=1e-4)
    """Optimizer of the policy."""
    value_network: Literal["shared", "own"] = "shared"
    """What the value head stands on: the policy's own trunk, or a network that begins as a copy of it and learns from
    the value loss alone. `own` learns more per sample, and costs the learner as much again in memory and two thirds as
    much again in time."""
    value_head_lr: float | None = Field(default=None, gt=0)
    """Learning rate of the value head, and of its network where it has one; None: the AdamW rate of the policy."""
    lr_warmup_updates: int = Field(default=0, ge=0)
    """Updates over which all learning rates rise linearly."""
    lr_schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How all learning rates fall to lr_final_fraction: not at all, linearly, or by half a cosine
    (arXiv:1608.03983)."""
    lr_final_fraction: float = Field(default=1.0, ge=0, le=1)
    """Share of the peak rate at the last update; 1, as with lr_schedule = "constant", keeps it constant."""
    value_warmup_updates: int = Field(default=0, ge=0)
    """First updates in which only the value head learns, and its network where it has one."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm; inf: never."""
    early_stop_kl: float | None = Field(default=None, gt=0)
    """An update ends before the minibatch, after the first, on which the policy is further than this from the one that
    sampled, in nats per token (k3); 0.02 to 0.1 are usual. None: all epochs are trained."""
    trainable_layers: int | None = Field(default=None, ge=1)
    """Train only the top k decoder layers and the final norm; None: everything."""

    # --- the objective
    advantage: Literal["gae", "rloo", "group_norm"] = "gae"
    """`gae`: by the value head (arXiv:1506.02438). `rloo`: a response's return less the mean return of the others of
    its group (arXiv:2402.14740). `group_norm`: less the group's mean, over its standard deviation (arXiv:2402.03300).
    The last two need samples_per_prompt of 2 or more and no value head: there is no value loss, and value_coef,
    value_clip_eps, value_head_lr and gae_lambda are not read. `group_norm` takes KL in the loss only: kl.coef = 0."""
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount per token."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """GAE's trade of bias against variance (arXiv:1506.02438, eq. 16)."""
    bootstrap_truncated: bool = False
    """Add the value of the state after the last token where a response was cut by its length limit."""
    advantage_whitening: Literal["none", "minibatch", "batch"] | None = None
    """Where advantages are brought to mean 0 and variance 1: over each minibatch's, or the whole update's tokens.
    None: `batch` with gae; `none` with rloo and group_norm, whose groups are centred already."""
    clip_eps: float = Field(default=0.2, gt=0)
    """The probability ratio counts within 1 - eps … 1 + eps (arXiv:1707.06347, eq. 7)."""
    clip_eps_high: float | None = Field(default=None, gt=0)
    """Clip-higher: the upper bound is 1 + this instead, so that rare tokens can rise (DAPO, arXiv:2503.14476).
    None: clip_eps."""
    dual_clip: float | None = Field(default=None, gt=1)
    """Where the advantage is negative, a ratio beyond this has no gradient (arXiv:1912.09729, eq. 5; 3 is usual), so
    that one token that became likely cannot rule a step. None: never."""
    importance_cap: float = Field(default=2.0, ge=1)
    """With max_staleness of 1 or more, a token's loss is weighed by the learner's probability over that of the policy
    that sampled it, at most this (arXiv:2505.24298, eq. 5); inf: never cut."""
    value_clip_eps: float = Field(default=0.2, gt=0)
    """Values may move this far from the old ones in one update, in units of returns; inf: no clipping."""
    value_coef: float = Field(default=0.1, ge=0)
    """Weight of the value loss."""
    entropy_coef: float = Field(default=0.0, ge=0)
    """Weight of the entropy bonus, per token."""

    # --- the reward
    reference: Literal["service", "shared_trunk", "none"] = "service"
    """Who computes the frozen reference's logprobs: the reward service, the learner (which keeps only the trained
    layers twice), or nobody."""
    kl: KLPenalty = FixedKL()
    """KL penalty in the reward; with `group_norm`, coef = 0."""
    kl_loss_coef: float = Field(default=0.0, ge=0)
    """KL penalty in the loss instead, by the estimator k2 = (logprob - ref_logprob)^2 / 2, whose gradient is right."""
    kl_estimator: Literal["k1", "k2", "k3"] | None = None
    """Estimator of the KL penalty: k1 in the reward and k2 in the loss, as None takes them. No other has the gradient
    of the KL, so others are refused; reports hold all three."""
    score_baseline: Literal["none", "prompt"] = "none"
    """`prompt` subtracts the reward model's logit of the prompt alone, so that the policy is paid for its own words."""
    score_normalization: ScoreNormalization = NoNormalization()
    """Whether scores are divided by their running standard deviation, before everything else."""
    score_scale: float = Field(default=1.0, gt=0)
    """The score is multiplied by it, after normalising and before clipping."""
    score_clip: float | None = Field(default=None, gt=0)
    """The scaled score is cut to ± this; None: never."""
    missing_eos_penalty: float = Field(default=0.0, ge=0)
    """Subtracted from the score of a response that did not end by itself."""

    # --- care
    probe_every: Annotated[int, CHANGEABLE] = Field(default=1, ge=1)
    """Publishes between two comparisons of the workers' logprobs with the learner's on a probe prompt."""
    checkpoint_every: Annotated[int, CHANGEABLE] = Field(default=10, ge=0)
    """Updates between checkpoints, written in the background; 0: only after the last one."""
    keep_last: Annotated[int, CHANGEABLE] = Field(default=2, ge=1)
    """Newest checkpoints that are kept."""
    keep_best: Annotated[int, CHANGEABLE] = Field(default=1, ge=0)
    """Checkpoints that are kept for the highest score_mean of their update."""
    checkpoint_url: Annotated[str | None, CHANGEABLE] = None
    """Where checkpoints go: a path or any fsspec URL, as `s3://bucket/run`; None: `checkpoints/` in the run folder."""
    max_nonfinite_updates: Annotated[int, CHANGEABLE] = Field(default=3, ge=1)
    """Updates in a row without one finite step after which the run stops."""
    max_drops_per_update: Annotated[int | None, CHANGEABLE] = Field(default=None, ge=0)
    """Samples that may be dropped and replaced for one update, with their whole groups; more stop the run. None:
    trajectories_per_update."""

    @property
    def uses_value_head(self) -> bool:
        """Whether advantages come from the value head, so that it learns."""
        return self.advantage == "gae"

    @property
    def whitening(self) -> Literal["none", "minibatch", "batch"]:
        """`advantage_whitening`, resolved."""
        return self.advantage_whitening or ("batch" if self.advantage == "gae" else "none")

    @model_validator(mode="after")
    def _sizes_divide(self) -> "PPOConfig":
        n, m, u = self.trajectories_per_update, self.minibatch_sequences, self.microbatch_sequences
        if n % m:
            divisors = [d for d in range(1, n + 1) if n % d == 0]
            fits = [d for d in divisors if u is None or d % u == 0] or divisors
            near = min(fits, key=lambda d: abs(d - m))
            raise ValueError(
                f"trajectories_per_update={n} must divide by minibatch_sequences={m}; "
                f"try minibatch_sequences={near} or trajectories_per_update={max(m, round(n / m) * m)}"
            )
        if u is not None and m % u:
            near = min((d for d in range(1, m + 1) if m % d == 0), key=lambda d: abs(d - u))
            raise ValueError(f"minibatch_sequences={m} must divide by microbatch_sequences={u}; try {near}")
        longest = self.prompt_tokens.max + self.response_tokens.max
        if self.microbatch_tokens is not None and u is not None:
            raise ValueError(
                f"microbatch_sequences={u} and microbatch_tokens={self.microbatch_tokens} both say how a minibatch is "
                "cut; leave one of them out"
            )
        if self.microbatch_tokens is not None and self.microbatch_tokens < longest:
            raise ValueError(
                f"microbatch_tokens={self.microbatch_tokens} cannot hold one sample of up to {longest} tokens "
                f"(prompt_tokens.max + response_tokens.max); set it to {longest} or more"
            )
        return self

    @model_validator(mode="after")
    def _groups_are_whole(self) -> "PPOConfig":
        n, k = self.trajectories_per_update, self.samples_per_prompt
        if n % k:
            unit = math.lcm(k, self.minibatch_sequences)
            raise ValueError(
                f"trajectories_per_update={n} counts samples, and must divide by samples_per_prompt={k}; "
                f"try trajectories_per_update={max(1, round(n / unit)) * unit}"
            )
        if self.advantage == "gae":
            return self
        if k < 2:
            raise ValueError(
                f"advantage={self.advantage!r} compares the samples of one prompt, and samples_per_prompt={k} leaves "
                'nothing to compare; set samples_per_prompt to 2 or more (4 is usual), or advantage = "gae"'
            )
        of_value_head = {
            "value_warmup_updates": (self.value_warmup_updates, 0),
            "bootstrap_truncated": (self.bootstrap_truncated, False),
            "gamma": (self.gamma, 1.0),
        }
        for name, (value, neutral) in of_value_head.items():
            if value != neutral:
                raise ValueError(
                    f"{name}={value} is for a value head, and advantage={self.advantage!r} has none: a "
                    f'response counts as a whole; set {name} = {str(neutral).lower()}, or advantage = "gae"'
                )
        return self

    @model_validator(mode="after")
    def _values_are_wanted(self) -> "PPOConfig":
        if self.value_network == "own" and not self.uses_value_head:
            raise ValueError(
                f'value_network="own" serves values, and advantage={self.advantage!r} needs none; set value_network = '
                '"shared", or advantage = "gae"'
            )
        if self.value_network == "own" and self.trainable_layers is not None:
            raise ValueError(
                f'value_network="own" trains a whole network beside the top {self.trainable_layers} layers of the '
                'policy; set value_network = "shared", or leave trainable_layers out'
            )
        return self

    @model_validator(mode="after")
    def _tokens_are_sampled_from_the_policy(self) -> "PPOConfig":
        if self.top_p < 1:
            raise ValueError(
                f"top_p={self.top_p} in training: a token outside of the nucleus has probability 0 under the "
                "distribution that was sampled from, and the nucleus moves with the policy, so that the ratio and the "
                "KL of such samples do not exist; set ppo.top_p = 1, and lower temperature for less random samples "
                "(it is in ratio and KL alike)"
            )
        return self

    @model_validator(mode="after")
    def _rates_fall_as_told(self) -> "PPOConfig":
        if self.lr_schedule == "constant" and self.lr_final_fraction != 1:
            raise ValueError(
                f'lr_schedule="constant" never reaches lr_final_fraction={self.lr_final_fraction}; set it to 1, or '
                'choose lr_schedule = "linear" or "cosine"'
            )
        if self.lr_schedule == "cosine" and self.lr_final_fraction == 1:
            raise ValueError(
                'lr_schedule="cosine" with lr_final_fraction=1 never falls; set lr_final_fraction = 0, or another '
                'share below 1, or choose lr_schedule = "constant"'
            )
        return self

    @model_validator(mode="after")
    def _weighs_what_is_there(self) -> "PPOConfig":
        check_weights(self.data, self.weights)
        return self

    @model_validator(mode="after")
    def _kl_counts_once(self) -> "PPOConfig":
        check_kl(self.kl, self.kl_loss_coef, self.kl_estimator, reference=self.reference, advantage=self.advantage)
        return self

    @model_validator(mode="after")
    def _kl_coefficient_stays_positive(self) -> "PPOConfig":
        if self.kl.type == "adaptive" and self.kl.horizon <= 0.2 * self.trajectories_per_update:
            raise ValueError(
                f"kl.horizon={self.kl.horizon} with trajectories_per_update={self.trajectories_per_update} could turn "
                f"the KL coefficient negative; set it to {self.trajectories_per_update} or more"
            )
        return self

    @model_validator(mode="after")
    def _what_works_so_far(self) -> "PPOConfig":
        if self.value_warmup_updates >= self.updates:
            raise ValueError(
                f"value_warmup_updates={self.value_warmup_updates} leaves none of updates={self.updates} "
                "to train the policy; lower it"
            )
        return self
