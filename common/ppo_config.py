"""Every number of the PPO stage, with its unit and its source. Imports pydantic only."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from common.config_base import CHANGEABLE, Config
from common.data_config import LengthRange, Weights, check_weights
from common.score_config import NoNormalization, ScoreNormalization

Decay = Annotated[float, Field(ge=0, lt=1)]


class AdamW(Config):
    """Adam with decoupled weight decay (arXiv:1711.05101), on all parameters."""

    type: Literal["adamw"] = "adamw"
    """Tag of the union."""
    lr: float = Field(gt=0)
    """Peak learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """Decay of the first and second moment."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled decay, times the learning rate, per step."""


class Muon(Config):
    """Muon (Jordan et al. 2024; arXiv:2502.16982) on hidden matrices, AdamW on embeddings, head, norms and biases."""

    type: Literal["muon"] = "muon"
    """Tag of the union."""
    lr: float = Field(gt=0)
    """Peak learning rate of the hidden matrices."""
    momentum: float = Field(default=0.95, ge=0, lt=1)
    """Nesterov momentum of the hidden matrices."""
    adjust_lr: Literal["original", "match_rms_adamw"] = "original"
    """How the rate of a matrix follows from its shape (torch.optim.Muon's `adjust_lr_fn`)."""
    adamw_lr: float = Field(gt=0)
    """Peak learning rate of everything else."""
    betas: tuple[Decay, Decay] = (0.9, 0.95)
    """AdamW's decay of the first and second moment."""
    weight_decay: float = Field(default=0.0, ge=0)
    """Decoupled decay of both groups."""


Optimizer = Annotated[AdamW | Muon, Field(discriminator="type")]


class FixedKL(Config):
    """A constant KL coefficient."""

    type: Literal["fixed"] = "fixed"
    """Tag of the union."""
    coef: float = Field(default=0.1, ge=0)
    """Weight of the per-token penalty k1 = logprob - ref_logprob, subtracted from the reward; 0 turns it off."""


class AdaptiveKL(Config):
    """A proportional controller of the KL coefficient (arXiv:1909.08593, section 2.2)."""

    type: Literal["adaptive"] = "adaptive"
    """Tag of the union."""
    coef: float = Field(default=0.2, gt=0)
    """Coefficient of the first update."""
    measure: Literal["kl_seq_sum", "kl_token_mean"] = "kl_seq_sum"
    """What is steered: the KL summed over a response (nats per sequence), or its mean per response token."""
    target: float = Field(default=6.0, gt=0)
    """Wanted value of the measure, in nats; 6 per sequence and 0.1 per token are usual and not interchangeable."""
    horizon: int = Field(default=10_000, ge=1)
    """Trajectories over which the coefficient may change by a factor of e^0.2."""


KLPenalty = Annotated[FixedKL | AdaptiveKL, Field(discriminator="type")]


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
    """Samples of one update."""
    prompt_tokens: LengthRange = LengthRange(min=2, max=8)
    """A prompt is the first n tokens of a text; those of demonstrations are whole, and left out above `max`."""
    response_tokens: LengthRange = LengthRange(min=16, max=16)
    """Most tokens of a response; it ends earlier at an EOS token."""
    temperature: float = Field(default=1.0, gt=0)
    """Logits are divided by it in sampling, in the learner and in the reference alike."""
    max_staleness: int = Field(default=0, ge=0)
    """Updates by which a trajectory's weights may be older than the learner's; 0 is strictly on-policy."""

    # --- what is optimised
    epochs: int = Field(default=4, ge=1)
    """Passes over the samples of an update."""
    minibatch_sequences: int = Field(default=64, ge=1)
    """Samples of one optimizer step."""
    microbatch_sequences: int | None = Field(default=None, ge=1)
    """Samples of one forward and backward pass; gradients add up to the minibatch's. None: the whole minibatch."""
    optimizer: Optimizer = AdamW(lr=1e-4)
    """Optimizer of the policy."""
    value_head_lr: float | None = Field(default=None, gt=0)
    """Learning rate of the value head; None: the AdamW rate of the policy."""
    lr_warmup_updates: int = Field(default=0, ge=0)
    """Updates over which all learning rates rise linearly."""
    lr_final_fraction: float = Field(default=1.0, ge=0, le=1)
    """Share of the peak rate at the last update, reached linearly; 1 keeps it constant."""
    value_warmup_updates: int = Field(default=0, ge=0)
    """First updates in which only the value head learns."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients are scaled down to this norm; inf: never."""
    trainable_layers: int | None = Field(default=None, ge=1)
    """Train only the top k decoder layers and the final norm; None: everything."""

    # --- the objective
    gamma: float = Field(default=1.0, gt=0, le=1)
    """Discount per token."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """GAE's trade of bias against variance (arXiv:1506.02438, eq. 16)."""
    bootstrap_truncated: bool = False
    """Add the value of the state after the last token where a response was cut by its length limit."""
    advantage_whitening: Literal["none", "minibatch", "batch"] = "batch"
    """Where advantages are brought to mean 0 and variance 1: over each minibatch's, or the whole update's tokens."""
    clip_eps: float = Field(default=0.2, gt=0)
    """The probability ratio counts within 1 - eps … 1 + eps (arXiv:1707.06347, eq. 7)."""
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
    """KL penalty in the reward."""
    kl_loss_coef: float = Field(default=0.0, ge=0)
    """KL penalty in the loss instead, by the estimator k2 = (logprob - ref_logprob)^2 / 2, whose gradient is right."""
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
    """Samples that may be dropped and replaced for one update; more stop the run. None: trajectories_per_update."""

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
        return self

    @model_validator(mode="after")
    def _weighs_what_is_there(self) -> "PPOConfig":
        check_weights(self.data, self.weights)
        return self

    @model_validator(mode="after")
    def _kl_counts_once(self) -> "PPOConfig":
        if self.kl.coef > 0 and self.kl_loss_coef > 0:
            raise ValueError(
                f"KL would count twice: kl.coef={self.kl.coef} in the reward and kl_loss_coef={self.kl_loss_coef} "
                "in the loss; set one of them to 0"
            )
        if self.reference == "none" and (self.kl.coef > 0 or self.kl_loss_coef > 0):
            raise ValueError(
                'reference="none" leaves nothing to measure KL against; set kl = { type = "fixed", coef = 0 } and '
                'kl_loss_coef = 0, or choose reference = "service"'
            )
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
        if self.max_staleness > 0:
            raise ValueError(
                f"max_staleness={self.max_staleness}: only 0 (strictly on-policy) is built so far; set it to 0"
            )
        if self.value_warmup_updates >= self.updates:
            raise ValueError(
                f"value_warmup_updates={self.value_warmup_updates} leaves none of updates={self.updates} "
                "to train the policy; lower it"
            )
        return self
