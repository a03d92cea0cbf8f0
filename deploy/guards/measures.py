"""What each guard rail looks at, and within which limits that is well: pure functions of one update's measures.

Called by `deploy/guards/guards.py`, which decides how long something has to last, and what is done.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from common.guards_config import GuardsConfig
from common.kl_config import KLPenalty
from deploy.run_folder.contents import finite

COMPARED: Final = ("entropy", "response_tokens_mean", "score_mean")
"""Metrics whose mean over the first updates is kept."""


@dataclass(frozen=True, slots=True)
class Measure:
    """A value, its limits, and both in words."""

    value: float
    low: float
    high: float
    words: str
    """As in `KL per response of 31.2 nats; at most 30 (guards.kl.max_nats)`."""

    @property
    def is_beyond(self) -> bool:
        """Whether it is outside of its limits."""
        return not self.low <= self.value <= self.high


@dataclass(slots=True)
class Baseline:
    """Means over the first updates of a run: what entropy and length are compared with."""

    wanted: int
    """Updates."""
    _values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, metrics: Mapping[str, float | None]) -> None:
        """One more update, which counts where it is among the first."""
        for name in COMPARED:
            values, value = self._values.setdefault(name, []), finite(metrics.get(name))
            if value is not None and len(values) < self.wanted:
                values.append(value)

    def mean(self, name: str) -> float | None:
        """None until the first updates are done."""
        values = self._values.get(name, [])
        return math.fsum(values) / len(values) if len(values) == self.wanted else None


def measure(
    guard: str,
    metrics: Mapping[str, float | None],
    *,
    config: GuardsConfig,
    kl: KLPenalty,
    kl_target: float | None,
    baseline: Baseline,
) -> Measure | None:
    """What a guard sees in an update; None where there is nothing to see, so that nothing follows.

    Args:
        guard: one of `common.metric_labels.GUARDS` but `judge_gap`, which looks at evaluations.
        metrics: of the update, by the names of metrics.jsonl.
        config: the limits.
        kl: how KL is paid for.
        kl_target: in force at that update; None where there is none.
        baseline: of the run's first updates.
    """
    match guard:
        case "kl":
            return _kl(metrics, config, kl, kl_target)
        case "entropy":
            return _entropy(metrics, config, baseline)
        case "clip_fraction":
            limit = config.clip_fraction.max_fraction
            return _share(metrics, "clip_fraction", limit, "clipped tokens", "guards.clip_fraction.max_fraction")
        case "repetition":
            limit = config.repetition.max_fraction
            return _share(metrics, "repetition", limit, "repeated trigrams", "guards.repetition.max_fraction")
        case _:
            return _length(metrics, config, baseline)


def _kl(
    metrics: Mapping[str, float | None], config: GuardsConfig, kl: KLPenalty, target: float | None
) -> Measure | None:
    if kl.type == "adaptive" and target is not None:
        name, limit = kl.measure, config.kl.max_targets * target
        because = f"{config.kl.max_targets:g} times the target of {target:g}, guards.kl.max_targets"
    else:
        name, limit, because = "kl_seq_sum", config.kl.max_nats, "guards.kl.max_nats"
    value = finite(metrics.get(name))
    unit = "response" if name == "kl_seq_sum" else "token"
    words = f"KL of {_shown(value)} nats per {unit}; at most {limit:g} ({because})"
    return None if value is None else Measure(value, -math.inf, limit, words)


def _entropy(metrics: Mapping[str, float | None], config: GuardsConfig, baseline: Baseline) -> Measure | None:
    value, first = finite(metrics.get("entropy")), baseline.mean("entropy")
    if value is None or first is None:
        return None
    limit = config.entropy.min_fraction * first
    words = (
        f"entropy of {value:.3g} nats per token; at least {limit:.3g} ({config.entropy.min_fraction:g} times that of "
        "the first updates, guards.entropy.min_fraction)"
    )
    return Measure(value, limit, math.inf, words)


def _share(metrics: Mapping[str, float | None], name: str, limit: float, what: str, key: str) -> Measure | None:
    value = finite(metrics.get(name))
    words = f"{_shown(value)} of {what}; at most {limit:g} ({key})"
    return None if value is None else Measure(value, -math.inf, limit, words)


def _length(metrics: Mapping[str, float | None], config: GuardsConfig, baseline: Baseline) -> Measure | None:
    value, first = finite(metrics.get("response_tokens_mean")), baseline.mean("response_tokens_mean")
    if value is None or first is None:
        return None
    ratio = config.length.max_ratio
    score, before = finite(metrics.get("score_mean")), baseline.mean("score_mean")
    meanwhile = "" if score is None or before is None else f"; the score went from {before:+.3g} to {score:+.3g}"
    words = (
        f"responses of {value:.3g} tokens, first {first:.3g}; within 1/{ratio:g} to {ratio:g} times those of the first "
        f"updates (guards.length.max_ratio){meanwhile}"
    )
    return Measure(value, first / ratio, first * ratio, words)


def _shown(value: float | None) -> str:
    return "nothing" if value is None else f"{value:.3g}"
