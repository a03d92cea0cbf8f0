"""How far the policy is from the frozen reference: estimators, measures and the controllers of the coefficient.

Pure maths and two small plain classes. Not here: the penalty itself (`advantages.token_rewards`, `losses.kl_loss`) and
who calls it (`ppo.py`).

    per token        estimator   why
    in the reward    k1          only k1 in the reward gives the exact policy gradient of the KL; k3 would bias it
    in the loss      k2          its gradient is the exact one; k1's expectation is 0 and k3's is another divergence's
    in reports       k1 and k3   k1 is unbiased and may be negative in a small sample; k3 is unbiased and never negative

Estimators: Schulman, "Approximating KL Divergence" (joschu.net/blog/kl-approx.html, 2020), with tokens drawn from the
policy. A log-ratio is never clamped: one beyond 88 nats overflows float32 in k3 and shows as infinity.

Legend: B sequences, R response slots.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from common.errors import CheckpointError, NonFiniteError
from common.kl_config import AdaptiveKL, FixedKL, KLPenalty
from common.masked import masked_mean, masked_sum
from common.run_settings import RunSettings

_MAX_ERROR = 0.2


def k1(log_ratio: Tensor) -> Tensor:
    """The log-ratio itself: unbiased, of either sign, high variance.

    Used in the reward. Never as a loss: the expectation of its gradient is that of the score function, which is 0.

    Args:
        log_ratio: [...] float, logprobs - ref_logprobs of tokens drawn from the policy.

    Returns:
        [...] nats per token; gradients flow.
    """
    return log_ratio


def k2(log_ratio: Tensor) -> Tensor:
    """Half the squared log-ratio: low variance, biased as a value, right as a gradient.

    Used as a loss: E[k2'] = E[log_ratio * grad logprob], the gradient of KL(policy || reference) exactly, as long as
    the tokens come from the policy that is differentiated. Shapes and gradients as in `k1`.
    """
    return 0.5 * log_ratio.square()


def k3(log_ratio: Tensor) -> Tensor:
    """exp(-log_ratio) - 1 + log_ratio: unbiased and never negative.

    Used in reports. Never as a loss: the expectation of its gradient is that of KL(reference || policy). Shapes and
    gradients as in `k1`.
    """
    return torch.expm1(-log_ratio) + log_ratio


def kl_seq_sum(kl: Tensor, response_mask: Tensor) -> Tensor:
    """KL of a whole response: mean over sequences of the sum over tokens.

    Args:
        kl: [B, R] float, an estimator per token; anything at dead slots.
        response_mask: [B, R] bool; a row without live slots is no sequence.

    Returns:
        [] float, nats per sequence; gradients flow to live slots only.
    """
    return masked_sum(kl, response_mask) / response_mask.any(dim=1).sum().clamp(min=1)


def kl_token_mean(kl: Tensor, response_mask: Tensor) -> Tensor:
    """KL of a token: mean over all live tokens of all sequences, in nats per token. Arguments as in `kl_seq_sum`."""
    return masked_mean(kl, response_mask)


class FixedController:
    """A constant coefficient. It has no state: on resume the configuration decides."""

    def __init__(self, coef: float) -> None:
        self.coef = coef

    def follow(self, settings: RunSettings) -> None:
        """Take the coefficient that is in force."""
        self.coef = self.coef if settings.kl_coef is None else settings.kl_coef

    def report(self, measures: Mapping[str, float]) -> dict[str, float]:
        """Empty: there is no target."""
        return {}

    def update(self, measures: Mapping[str, float], num_trajectories: int) -> None:
        """Nothing; so that the learner need not know which controller it has."""

    def state_dict(self) -> dict[str, float]:
        """Empty."""
        return {}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Nothing; what an adaptive controller left behind is not wanted where the coefficient is fixed."""


class AdaptiveController:
    """Proportional control of log(coef) (arXiv:1909.08593, section 2.2).

    The paper multiplies by 1 + 0.1 * error for each batch. Here, as in the code that came with it, the factor 0.1 is
    num_trajectories / horizon, so that the speed does not depend on the batch size.
    """

    def __init__(self, coef: float, *, measure: str, target: float, horizon: int) -> None:
        self.coef = coef
        self._measure = measure
        self._target = target
        self._horizon = horizon

    def follow(self, settings: RunSettings) -> None:
        """Take the target that is in force; the coefficient goes on from where it is."""
        self._target = self._target if settings.kl_target is None else settings.kl_target

    def report(self, measures: Mapping[str, float]) -> dict[str, float]:
        """The measure that is steered over its target, as `kl_target_ratio`."""
        return {"kl_target_ratio": measures[self._measure] / self._target}

    def update(self, measures: Mapping[str, float], num_trajectories: int) -> None:
        """Raise the coefficient where the policy went further than the target, else lower it; once per PPO update.

        Args:
            measures: in nats, under the names `kl_seq_sum` and `kl_token_mean`; only the configured one is read.
            num_trajectories: samples of the update.

        Raises:
            NonFiniteError: the measure is NaN or infinite; the coefficient stays as it was.
            ValueError: the horizon is so short that one step could make the coefficient 0 or negative.
        """
        kl = measures[self._measure]
        if not math.isfinite(kl):
            raise NonFiniteError(f"{self._measure}={kl}: the KL coefficient cannot follow it; coef stays {self.coef}")
        step = num_trajectories / self._horizon
        if _MAX_ERROR * step >= 1:
            raise ValueError(
                f"kl.horizon={self._horizon} with {num_trajectories} trajectories per update could turn the KL "
                f"coefficient negative; set it above {_MAX_ERROR * num_trajectories:g}"
            )
        error = min(max(kl / self._target - 1, -_MAX_ERROR), _MAX_ERROR)
        self.coef *= 1 + error * step

    def state_dict(self) -> dict[str, float]:
        """What a checkpoint keeps; JSON-able."""
        return {"coef": self.coef}

    def load_state_dict(self, state: Mapping[str, float]) -> None:
        """Go on from a checkpoint.

        Raises:
            CheckpointError: it was written by a run with a fixed coefficient.
        """
        if "coef" not in state:
            raise CheckpointError(
                f"state of the KL controller is {dict(state)}, needed is coef: the checkpoint comes from a run with "
                'kl.type = "fixed"; resume with that, or start anew'
            )
        self.coef = float(state["coef"])


KLController = FixedController | AdaptiveController


def make_controller(config: KLPenalty) -> KLController:
    """The controller that a configuration names."""
    match config:
        case FixedKL():
            return FixedController(config.coef)
        case AdaptiveKL():
            return AdaptiveController(config.coef, measure=config.measure, target=config.target, horizon=config.horizon)
