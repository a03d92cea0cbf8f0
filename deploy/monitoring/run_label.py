"""Puts the name of the run on every sample of GET /metrics. Not on the metrics themselves: a registry is one run's.

Where Prometheus finds a run by its file in `.targets`, the target says the name too. On a cluster that stays it knows
the head's pod, and not which run is there at the moment. Dashboards choose by `run`, and alerts name it.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Metric
from prometheus_client.registry import Collector


@dataclass(frozen=True, slots=True)
class OfRun(Collector):
    """The metrics of a registry, each sample with a label `run`."""

    registry: CollectorRegistry
    run: str
    """Name of the run."""

    def collect(self) -> Iterator[Metric]:
        """All metrics as they are now."""
        for metric in self.registry.collect():  # made anew at each call, so that nobody else has them
            metric.samples = [sample._replace(labels={**sample.labels, "run": self.run}) for sample in metric.samples]
            yield metric
