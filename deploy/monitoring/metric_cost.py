"""How much of PPO's time goes into metrics, measured.

    python -m deploy.monitoring.metric_cost CONFIG [key=value ...] [--ray]

Runs the configuration without its evaluation in a folder of its own, in one process unless `--ray` is given, and prints
the share of the updates' time that the driver spent on feeding metrics, and what one scrape takes.
"""

import argparse
import functools
import sys
import tempfile
import time
from pathlib import Path

from prometheus_client import CollectorRegistry, generate_latest
from rich.console import Console

from common.config_file import load_config
from common.metrics import RunMetrics
from deploy.checked_runtime import checked_runtime
from deploy.pipeline import Pipeline

SCRAPES = 20


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        prog="python -m deploy.monitoring.metric_cost", description=__doc__.split("\n\n")[0]
    )
    parser.add_argument("config", type=Path, help="a TOML file")
    parser.add_argument("changes", nargs="*", help="as --set takes them: ppo.updates=20")
    parser.add_argument("--ray", action="store_true", help="on a Ray cluster of its own, as runs are")
    asked = parser.parse_args()
    config = load_config(asked.config, asked.changes).model_copy(update={"evaluate": None})
    metrics = RunMetrics(CollectorRegistry())
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / config.name
        Pipeline(
            config,
            place,
            start_runtime=lambda: checked_runtime(
                config, place, local=not asked.ray, address=None, warn=functools.partial(print, file=sys.stderr)
            ),
            console=Console(stderr=True),
            metrics=metrics,
        ).run()
    print(in_words(metrics.registry))


def in_words(registry: CollectorRegistry) -> str:
    """What a run's metrics say of their own cost."""

    def value(name: str) -> float:
        return registry.get_sample_value(f"minichatgpt_{name}") or 0.0

    spent_s, updates_s, updates = value("metrics_seconds_total"), value("update_seconds_sum"), value("updates_total")
    start = time.perf_counter()
    for _ in range(SCRAPES):
        text = generate_latest(registry)
    scrape_s = (time.perf_counter() - start) / SCRAPES
    return (
        f"{updates:.0f} updates in {updates_s:.2f} s; metrics took {1e3 * spent_s:.1f} ms, "
        f"{spent_s / updates_s:.3%} of it, {1e3 * spent_s / updates:.2f} ms an update; "
        f"a scrape of {len(text) / 1e3:.0f} kB takes {1e3 * scrape_s:.1f} ms"
    )


if __name__ == "__main__":
    main()
