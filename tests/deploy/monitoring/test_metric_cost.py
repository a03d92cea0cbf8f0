"""What a run's metrics say of their own cost."""

import re

from prometheus_client import CollectorRegistry

from common.metrics import RunMetrics
from deploy.monitoring.metric_cost import in_words


def test_the_share_is_of_the_time_of_the_updates():
    metrics = RunMetrics(CollectorRegistry())
    for update_s in (1.5, 2.5):
        metrics.cycle({}, update_s, {})
    metrics.families.inc("updates", by=2)
    spent = metrics.registry.get_sample_value("minichatgpt_metrics_seconds_total")
    metrics.families.inc("metrics_seconds", by=0.02 - spent)
    said = in_words(metrics.registry)
    assert said.startswith("2 updates in 4.00 s; metrics took 20.0 ms, 0.500% of it, 10.00 ms an update;")
    assert re.search(r"a scrape of \d+ kB takes \d+\.\d ms$", said)
