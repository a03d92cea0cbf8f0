"""The penalty for the KL to the reference: where it is paid, and by which estimator. Imports pydantic only."""

from typing import Annotated, Literal

from pydantic import Field

from common.config_base import Config


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

_WRONG_ESTIMATORS = {
    "reward": "only k1 there gives the gradient of the KL; k2 and k3 pull somewhere else (k2 belongs in the loss: "
    "kl_loss_coef)",
    "loss": "only k2 there gives the gradient of the KL; that of k1 is 0 on average and that of k3 belongs to "
    "KL(reference || policy) (k1 belongs in the reward: kl.coef)",
}


def check_kl(kl: KLPenalty, kl_loss_coef: float, estimator: str | None, *, reference: str, advantage: str) -> None:
    """KL is paid for in one place, by the estimator that is right there, in a unit that the advantages keep.

    Raises:
        ValueError: the settings of a PPO stage contradict each other.
    """
    if kl.coef > 0 and kl_loss_coef > 0:
        raise ValueError(
            f"KL would count twice: kl.coef={kl.coef} in the reward and kl_loss_coef={kl_loss_coef} "
            "in the loss; set one of them to 0"
        )
    if reference == "none" and (kl.coef > 0 or kl_loss_coef > 0):
        raise ValueError(
            'reference="none" leaves nothing to measure KL against; set kl = { type = "fixed", coef = 0 } and '
            'kl_loss_coef = 0, or choose reference = "service"'
        )
    if advantage == "group_norm" and kl.coef > 0:
        raise ValueError(
            f"advantage='group_norm' with kl.coef={kl.coef} in the reward: each group is divided by its own spread, so "
            "that in a group of equal scores the noise of the KL becomes an advantage of full size; set "
            'kl = { type = "fixed", coef = 0 } and kl_loss_coef above 0 instead (0.04, say), or advantage = "rloo"'
        )
    place, right = ("loss", "k2") if kl_loss_coef > 0 else ("reward", "k1")
    if estimator not in (None, right):
        raise ValueError(
            f"kl_estimator={estimator!r} for a penalty in the {place}: {_WRONG_ESTIMATORS[place]}; set "
            f"kl_estimator = {right!r}, or leave it out. k1, k2 and k3 are all reported, whatever is penalised"
        )
