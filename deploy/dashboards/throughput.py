"""Throughput and bottleneck: who waits for whom?"""

from typing import Final

from deploy.dashboards.panels import (
    INTERVAL,
    Dashboard,
    Panel,
    Query,
    Row,
    gauge,
    mean,
    per_second,
    quantile,
    recorded,
    series,
)

OVERVIEW: Final = Row("Now", (
    Panel("Updates per hour", (Query(f"3600 * {recorded('updates:rate30m')}"),), kind="stat", width=4,
          note="Over the last 30 minutes, or since the start."),
    Panel("Seconds of an update", (Query(recorded("update_seconds:mean")),), "s", kind="stat", width=4,
          note="Mean since the driver started."),
    Panel("Generated", (Query(recorded("generated_tokens:rate1m")),), "suffix: tokens/s", kind="stat", width=4,
          note="Response tokens by all workers, mean over a minute."),
    Panel("Trained", (Query(recorded("trained_tokens:rate1m")),), "suffix: tokens/s", kind="stat", width=4,
          note="Response tokens trained on, each counted once, mean over a minute."),
    Panel("The learner waits", (Query(recorded("loop_seconds:share30m", 'phase="collect"')),), "percentunit",
          kind="stat", width=4, steps=((0.6, "yellow"), (0.85, "red")),
          note="Share of the main loop in which the learner waits for samples. Near 1: add rollout workers."),
    Panel("Rollout workers work", (Query(series("busy_ratio", 'role="rollout"')),), "percentunit", kind="stat",
          width=4),
))  # fmt: skip

WAITING: Final = Row("Who waits for whom", (
    Panel("Main loop by phase", (Query(recorded("loop_seconds:share30m"), "{{run}} {{phase}}"),), "percentunit",
          width=12, stacked=True,
          note="collect: the learner waits for samples; more workers help. update: the workers wait for the learner."),
    Panel("Share of the time in which a role works", (Query(recorded("busy_seconds:share30m"), "{{run}} {{role}}"),),
          "percentunit", width=12,
          note="Mean over a role's members, last 30 minutes. The role near 1 is the bottleneck."),
    Panel("Share of the last update in which a role worked", (Query(series("busy_ratio"), "{{run}} {{role}}"),),
          "percentunit"),
    Panel("Requests that wait", (Query(series("queue_length"), "{{run}} {{role}}"),)),
    Panel("The oldest has waited", (Query(series("queue_age_seconds"), "{{run}} {{role}}"),), "s"),
))  # fmt: skip

RATES: Final = Row("Rates", (
    Panel("Tokens generated", (Query(per_second("generated_tokens", "slot"), "{{run}} {{slot}}"),),
          "suffix: tokens/s", stacked=True),
    Panel("Tokens by way of the engine", (Query(per_second("engine_tokens", "path"), "{{run}} {{path}}"),),
          "suffix: tokens/s", stacked=True),
    Panel("Tokens trained", (Query(f"rate({series('trained_tokens')}[{INTERVAL}])"),), "suffix: tokens/s"),
    Panel("Prompt tokens read", (Query(per_second("prompt_tokens", "slot"), "{{run}} {{slot}}"),), "suffix: tokens/s",
          stacked=True),
    Panel("Updates", (Query(f"60 * rate({series('updates')}[{INTERVAL}])"),), "suffix: updates/min"),
    Panel("Seconds of an update", (Query(quantile(0.5, "update_seconds", "instance"), "{{run}} half are below"),
                                   Query(quantile(0.95, "update_seconds", "instance"), "{{run}} 95 % are below")), "s"),
    Panel("Main loop, seconds per second", (Query(per_second("loop_seconds", "phase"), "{{run}} {{phase}}"),), "none",
          stacked=True),
))  # fmt: skip

CALLS: Final = Row("Calls", (
    Panel("Mean seconds by role and phase",
          (Query(mean("phase_seconds", "role, phase"), "{{run}} {{role}} {{phase}}"),), "s"),
    Panel("Request, 95 % are below", (Query(recorded("request_seconds:p95_5m"), "{{run}} {{role}} {{method}}"),), "s",
          note="From handing a request to a member until its answer, over 5 minutes."),
    Panel("Wait for a member, 95 % are below",
          (Query(quantile(0.95, "request_queue_seconds", "role, method"), "{{run}} {{role}} {{method}}"),), "s"),
    Panel("Publishing weights, mean seconds", (Query(mean("publish_seconds", "part"), "{{run}} {{part}}"),), "s"),
    gauge("Size of the weights", "published_bytes", "bytes"),
    Panel("Staleness", (Query(mean("staleness_updates", "instance")),), "none",
          note="Mean, in updates; 0 in synchronous mode, about ppo.max_staleness where workers keep up."),
    Panel("Driver's seconds for these metrics", (Query(f"rate({series('metrics_seconds')}[{INTERVAL}])"),),
          "percentunit", steps=((0.01, "red"),)),
))  # fmt: skip

THROUGHPUT: Final = Dashboard(
    "mini-chatgpt-throughput", "Throughput and bottleneck", "How fast is it, and who waits for whom?",
    (OVERVIEW, WAITING, RATES, CALLS),
)  # fmt: skip
