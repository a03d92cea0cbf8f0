"""Reward service: are all samples judged, in time, by scores that say something?"""

from typing import Final

from deploy.dashboards.panels import (
    INTERVAL,
    Dashboard,
    Panel,
    Query,
    Row,
    gauge,
    happened,
    heatmap,
    mean,
    or_zero,
    quantile,
    recorded,
    series,
)

REWARD_ROLE: Final = 'role="reward"'

OVERVIEW: Final = Row("Now", (
    Panel("Replicas active", (Query(series("members", REWARD_ROLE, 'state="active"')),), kind="stat", width=6),
    Panel("Samples not judged", (Query(or_zero(recorded("unscored_samples:share15m"))),), "percentunit", kind="stat",
          width=6, steps=((0.001, "yellow"), (0.01, "red")), note="Share of those dispatched in 15 minutes."),
    Panel("Requests that wait", (Query(series("queue_length", REWARD_ROLE)),), kind="stat", width=6),
    Panel("Samples per scoring call", (Query(mean("reward_batch_samples", "instance")),), kind="stat", width=6),
))  # fmt: skip

LATENCY: Final = Row("Latency", (
    Panel("Request, from hand-over to answer",
          (Query(quantile(0.5, "request_seconds", "method", REWARD_ROLE), "{{run}} {{method}}, half are below"),
           Query(quantile(0.95, "request_seconds", "method", REWARD_ROLE), "{{run}} {{method}}, 95 % are below")), "s"),
    Panel("Wait for a replica, 95 % are below",
          (Query(quantile(0.95, "request_queue_seconds", "method", REWARD_ROLE), "{{run}} {{method}}"),), "s"),
    Panel("Mean seconds by phase", (Query(mean("phase_seconds", "phase", REWARD_ROLE), "{{run}} {{phase}}"),), "s"),
    Panel("Requests that wait", (Query(series("queue_length", REWARD_ROLE)),)),
    Panel("The oldest has waited", (Query(series("queue_age_seconds", REWARD_ROLE)),), "s"),
    heatmap("Samples per scoring call", "reward_batch_samples", "none"),
))  # fmt: skip

FAILURES: Final = Row("Failures", (
    Panel("Samples not judged, by reason", (Query(happened("unscored_samples", "reason"), "{{run}} {{reason}}"),),
          steps=((1, "red"),)),
    Panel("Deadlines passed", (Query(happened("timeouts", "phase", REWARD_ROLE), "{{run}} {{phase}}"),)),
    Panel("Restarts of replicas", (Query(happened("restarts", "role", REWARD_ROLE)),)),
))  # fmt: skip

SCORES: Final = Row("Scores", (
    heatmap("Scores", "sample_score", "none"),
    gauge("Spread of an update's scores", "score_std", "none"),
    gauge("Groups whose samples all have one score", "zero_std_group_ratio", "percentunit"),
))  # fmt: skip

REPLICAS: Final = Row("Replicas", (
    Panel("Share of the time at work",
          (Query(f"rate({series('busy_seconds', REWARD_ROLE)}[{INTERVAL}])", "{{run}} {{slot}}"),), "percentunit"),
    Panel("Calls held", (Query(series("calls_held", REWARD_ROLE), "{{run}} {{slot}}"),)),
    Panel("Memory", (Query(series("memory_bytes", REWARD_ROLE), "{{run}} {{slot}}"),), "bytes"),
))  # fmt: skip

REWARD: Final = Dashboard(
    "mini-chatgpt-reward", "Reward service", "Are all samples judged, in time, by scores that say something?",
    (OVERVIEW, LATENCY, FAILURES, SCORES, REPLICAS),
)  # fmt: skip
