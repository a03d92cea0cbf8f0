"""The Prometheus metrics themselves, made in one loop from the catalogue, and the seconds that go into feeding them.

Knows names, types and labels, and nothing of what they mean: that is in metrics.py and member_metrics.py, which alone
use it.
"""

import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from common.metric_catalogue import CATALOGUE, PREFIX, Metric
from common.metric_labels import KNOWN

Family = Counter | Gauge | Histogram


def _make(metric: Metric, registry: CollectorRegistry) -> Family:
    """One metric, with the series whose labels are known; a gauge without labels is NaN until it is told."""
    name, meaning, labels = PREFIX + metric.name, metric.meaning, metric.labels
    family: Family
    match metric.type:
        case "counter":
            family = Counter(name, meaning, labels, registry=registry)
        case "histogram":
            family = Histogram(name, meaning, labels, registry=registry, buckets=metric.buckets)
        case "gauge":
            family = Gauge(name, meaning, labels, registry=registry)
            if not labels:
                family.set(math.nan)  # 0 would be a number that nobody measured, and set off alerts
    for values in KNOWN.get(metric.name, ()):
        family.labels(*values)
    return family


class Families:
    """Every metric by its name in the catalogue.

    Args:
        registry: where they are declared; a fresh one per run.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._families = {name: _make(metric, registry) for name, metric in CATALOGUE.items()}
        self._series: dict[tuple[str, ...], Family] = {}
        """Those with labels that were used, for looking one up costs more than adding to it."""
        self._reported = {m.report: m.name for m in CATALOGUE.values() if m.report}

    def inc(self, name: str, *labels: str, by: float = 1.0) -> None:
        """Add to a counter."""
        series = self._one(name, labels)
        assert isinstance(series, Counter), f"{name} is no counter"
        series.inc(by)

    def set(self, name: str, value: float, *labels: str) -> None:
        """Set a gauge."""
        series = self._one(name, labels)
        assert isinstance(series, Gauge), f"{name} is no gauge"
        series.set(value)

    def observe(self, name: str, value: float, *labels: str, times: int = 1) -> None:
        """Put a value into a histogram."""
        series = self._one(name, labels)
        assert isinstance(series, Histogram), f"{name} is no histogram"
        for _ in range(times):
            series.observe(value)

    def begin(self, name: str, *labels: str) -> None:
        """Have a series, at 0 if it is new."""
        self._one(name, labels)

    def _one(self, name: str, labels: tuple[str, ...]) -> Family:
        if not labels:
            return self._families[name]
        series = self._series.get((name, *labels))
        if series is None:
            series = self._series[(name, *labels)] = self._families[name].labels(*labels)
        return series

    def remove(self, name: str, *labels: str) -> None:
        """End a series, if it is there."""
        if self._series.pop((name, *labels), None) is not None:
            self._families[name].remove(*labels)

    def report(self, key: str, value: float) -> None:
        """Set the gauge of a number that an update or an evaluation reports, if there is one."""
        if (name := self._reported.get(key)) is not None:
            self.set(name, value)

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count the seconds of the block as seconds spent on metrics."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.inc("metrics_seconds", by=time.perf_counter() - start)


class _Feeder(Protocol):
    @property
    def families(self) -> Families: ...


F = TypeVar("F", bound=_Feeder)
P = ParamSpec("P")
R = TypeVar("R")


def timed(method: Callable[Concatenate[F, P], R]) -> Callable[Concatenate[F, P], R]:
    """Decorator of a method that feeds metrics: its seconds are counted. Such methods do not call each other."""

    @wraps(method)
    def counting(self: F, /, *args: P.args, **kwargs: P.kwargs) -> R:
        with self.families.counting():
            return method(self, *args, **kwargs)

    return counting
