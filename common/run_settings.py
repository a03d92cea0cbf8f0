"""The few settings that may be changed while PPO trains. They ride on the calls, as weights do on requests.

Changed by `PATCH /v1/run/settings` or by a guard rail, between two updates; `deploy/ppo/steering.py` says which are in
force at each update, so that a run that is resumed or replayed meets the same ones.
"""

from dataclasses import asdict, dataclass

from common.ppo_config import PPOConfig


@dataclass(frozen=True, slots=True)
class RunSettings:
    """Values in force for one update.

    Example: `RunSettings(temperature=1.0, learning_rate=3e-4, kl_target=6.0, kl_coef=None)`
    """

    temperature: float
    """Of sampling, in the learner and in the reference alike; evaluation stays at `ppo.temperature`."""
    learning_rate: float
    """Peak rate, in the place of `ppo.optimizer.lr`; all other rates of the run move by the same factor."""
    kl_target: float | None
    """In nats of `ppo.kl.measure`, in the place of `ppo.kl.target`; None where the coefficient is fixed."""
    kl_coef: float | None
    """In the place of `ppo.kl.coef`; None where it is adaptive, for then the run moves it itself."""

    @classmethod
    def of(cls, config: PPOConfig) -> "RunSettings":
        """As configured."""
        kl = config.kl
        return cls(
            temperature=config.temperature,
            learning_rate=config.optimizer.lr,
            kl_target=kl.target if kl.type == "adaptive" else None,
            kl_coef=kl.coef if kl.type == "fixed" else None,
        )

    def present(self) -> dict[str, float]:
        """By name, without those that the run does not have."""
        return {name: value for name, value in asdict(self).items() if value is not None}
