"""docs/metrics.md, made from the catalogue: `python -m deploy.monitoring.metric_docs > docs/metrics.md`."""

import sys
from collections.abc import Sequence

from common.metric_catalogue import CATALOGUE, GROUPS, Metric
from common.metric_labels import KNOWN

COMMAND = "python -m deploy.monitoring.metric_docs > docs/metrics.md"
SHOWN = 8
"""Values of a label that are listed, at most; `…` stands for the rest."""

_HEAD = f"""# Metrics

<!-- Made from common/metric_catalogue.py; do not edit. To make it anew: {COMMAND} -->

What Prometheus sees of a run. The driver holds all of it, in one registry: workers and replicas send their share beside
their results, so there is one thing to scrape, and nobody but the driver opens a port.

## Scraping

The address is `/metrics` at the control channel's URL: the run prints it at its start, and `run.json` of the run folder
has it as `control_url`. `control.host` and `control.port` fix it, for a scraper that is told where to look:

```sh
curl -s "$(python -c 'import json; print(json.load(open("runs/demo/run.json"))["control_url"])')/metrics" | head
```

On this machine's loopback it may be read without a token; from elsewhere a scraper bears the read-only one, see
[control.md](control.md). Ray's own metrics, of nodes and object stores, are Ray's to scrape.

## What to know

* **Units** are base units, and stand in the name. Counters end in `_total` and begin at 0 with the process: use
  `rate()` or `increase()`. A ratio goes from 0 to 1.
* **A gauge that nobody has set yet is `NaN`**, which no comparison of an alert matches. A metric with labels has a
  series from the start where the values are known, at 0, so that `rate()` sees the first increase.
* **Labels** take few values. `role` is `rollout`, `reward`, `learner` or `driver`. `slot` is a member's place in its
  pool, `worker-0`, `replica-1`: whoever replaces a dead member goes on with its series, and the series go when the slot
  goes. No label holds a process, a node, a text or a number of an update; a word that nobody foresaw is `other`.
* **Cardinality**: about FIXED series that are always there, histogram buckets included, and about PER_WORKER for each
  worker and PER_REPLICA for each replica; beside every counter and histogram stands one `_created`.
* `sample_score` has no `_sum`: scores may be negative, and a sum that falls is no counter.

The time that goes into all this is `minichatgpt_metrics_seconds_total`; [performance.md](performance.md) says how
little it is.
"""


def page() -> str:
    """The whole page."""
    return "\n".join([_head(), *(_group(title, metrics) for title, metrics in GROUPS.items())])


def _head() -> str:
    fixed = sum(_series(metric) * (len(KNOWN.get(metric.name, ())) if metric.labels else 1)
                for metric in CATALOGUE.values())  # fmt: skip
    of_slots = [metric for metric in CATALOGUE.values() if "slot" in metric.labels]
    per_replica = sum("role" in metric.labels for metric in of_slots)
    numbers = {"FIXED": round(fixed, -1), "PER_WORKER": len(of_slots), "PER_REPLICA": per_replica}
    head = _HEAD
    for name, number in numbers.items():
        head = head.replace(name, str(number))
    return head


def _series(metric: Metric) -> int:
    """Of one set of label values."""
    return len(metric.buckets) + 3 if metric.type == "histogram" else 1


def _group(title: str, metrics: Sequence[Metric]) -> str:
    rows = "\n".join(_row(metric) for metric in metrics)
    return (
        f"## {title}\n\n| name | type | labels | unit | meaning | when to worry |\n|---|---|---|---|---|---|\n{rows}\n"
    )


def _row(metric: Metric) -> str:
    labels = "<br>".join(_label(metric, position, name) for position, name in enumerate(metric.labels))
    meaning = metric.meaning
    if metric.report:
        meaning += f" `{metric.report.removeprefix('evaluation.')}` of {_file(metric)}."
    cells = (f"`{metric.full_name}`", metric.type, labels, metric.unit, meaning, metric.worry)
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def _file(metric: Metric) -> str:
    name = "evaluations.jsonl" if metric.report.startswith("evaluation.") else "metrics.jsonl"
    return f"[{name}]({'evaluation' if name.startswith('e') else 'runs'}.md)"


def _label(metric: Metric, position: int, name: str) -> str:
    """Its name, and the values that are known."""
    known = list(dict.fromkeys(values[position] for values in KNOWN.get(metric.name, ()) if values[position]))
    if not known or name in ("role", "slot"):
        return f"`{name}`"
    return f"`{name}`: {', '.join(known[:SHOWN])}{', …' if len(known) > SHOWN else ''}"


if __name__ == "__main__":
    sys.stdout.write(page())
