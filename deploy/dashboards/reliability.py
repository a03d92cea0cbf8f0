"""Reliability: what broke, what was lost, and could the run go on from here?"""

from typing import Final

from deploy.dashboards.panels import (
    INTERVAL,
    RUN,
    Dashboard,
    Panel,
    Query,
    Row,
    gauge,
    happened,
    mean,
    or_zero,
    series,
)

OVERVIEW: Final = Row("Now", (
    Panel("Answers", (Query(f'up{{job="minichatgpt", {RUN}}}'),), kind="stat", width=4,
          words=((0, "no", "red"), (1, "yes", "green")), note="Whether Prometheus reaches the run."),
    Panel("Alerts", (Query(or_zero(f'count by (run) (ALERTS{{alertstate="firing", {RUN}}})')),), kind="stat",
          width=4, steps=((1, "red"),), note="That are firing; docs/alerts.md says what to do."),
    Panel("Paused", (Query(series("paused")),), kind="stat", width=4,
          words=((0, "no", "green"), (1, "yes", "yellow"))),
    Panel("Ledger", (Query(series("ledger_mismatch_samples")),), kind="stat", width=4, steps=((1, "red"),)),
    Panel("Age of the checkpoint", (Query(f"time() - ({series('checkpoint_time_seconds')} > 0)"),), "s", kind="stat",
          width=4),
    Panel("Updates since the checkpoint", (Query(f"{series('step')} - {series('checkpoint_step')}"),), kind="stat",
          width=4),
))  # fmt: skip

BROKE: Final = Row("What broke", (
    Panel("Firing alerts", (Query(or_zero(f'sum by (run, alertname) (ALERTS{{alertstate="firing", {RUN}}})'),
                                  "{{run}} {{alertname}}"),), width=12, note="docs/alerts.md says what to do."),
    Panel("Events", (Query(happened("events", "event"), "{{run}} {{event}}"),), width=12),
    Panel("Restarts", (Query(happened("restarts", "role"), "{{run}} {{role}}"),)),
    Panel("Deadlines passed", (Query(happened("timeouts", "role, phase"), "{{run}} {{role}} {{phase}}"),)),
    Panel("Lineage of the weights", (Query(series("lineage")), Query(series("rollbacks"), "{{run}} rollbacks"))),
    Panel("Since the driver started the stage", (Query(f"time() - ({series('start_time_seconds')} > 0)"),), "s"),
    Panel("Since the last update", (Query(f"time() - ({series('last_update_time_seconds')} > 0)"),), "s"),
    Panel("Largest gap of logprobs", (Query(series("logprob_gap_max_nats")),), "sci", steps=((0.001, "red"),)),
))  # fmt: skip

SAMPLES: Final = Row("Samples", (
    Panel("By fate", (Query(series("samples", 'fate!="trained"'), "{{run}} {{fate}} {{reason}}"),), width=12,
          note="Without those trained, which would dwarf the others."),
    Panel("Dispatched and trained", (Query(series("samples_dispatched"), "{{run}} dispatched"),
                                     Query(series("samples", 'fate="trained"'), "{{run}} trained"))),
    Panel("Answered twice", (Query(series("samples_duplicate")),), width=4),
))  # fmt: skip

CHECKPOINTS: Final = Row("Checkpoints", (
    Panel("Update and checkpoint", (Query(series("step"), "{{run}} update"),
                                    Query(series("checkpoint_step"), "{{run}} checkpoint"))),
    Panel("Seconds of saving", (Query(mean("checkpoint_seconds", "part"), "{{run}} {{part}}"),), "s"),
    gauge("Size of a checkpoint", "checkpoint_bytes", "bytes"),
    Panel("Saves that failed", (Query(happened("checkpoint_failures", "instance")),), steps=((1, "red"),)),
    Panel("Steps that were not finite", (Query(happened("nonfinite_steps", "instance")),), steps=((1, "red"),)),
    Panel("Memory of learner and driver",
          (Query(series("memory_bytes", 'role=~"learner|driver"'), "{{run}} {{role}}"),), "bytes"),
))  # fmt: skip

STEERING: Final = Row("Steering and guard rails", (
    Panel("Guard rails raised",
          (Query(or_zero(f"max by (run, guard) ({series('guard_alarm')})"), "{{run}} {{guard}}"),),
          kind="state-timeline", width=12, words=((0, "quiet", "green"), (1, "raised", "red"))),
    Panel("What they did", (Query(happened("guard_actions", "guard, action"), "{{run}} {{guard}} {{action}}"),),
          width=12),
    Panel("Settings in force", (Query(series("setting"), "{{run}} {{setting}}"),), "none"),
    Panel("Changes of settings", (Query(happened("setting_changes", "setting"), "{{run}} {{setting}}"),)),
    Panel("Requests to the control channel", (Query(or_zero(
        f"sum by (run, route, status) (rate({series('control_requests')}[{INTERVAL}]))"),
        "{{run}} {{route}} {{status}}"),), "reqps"),
))  # fmt: skip

WHAT_RUNS: Final = Row("What runs", (
    Panel("Runs", (Query(series("run_info")),), kind="table", width=12),
    Panel("Versions", (Query(series("build_info")),), kind="table", width=12),
))  # fmt: skip

RELIABILITY: Final = Dashboard(
    "mini-chatgpt-reliability", "Reliability", "What broke, what was lost, and could the run go on from here?",
    (OVERVIEW, BROKE, SAMPLES, CHECKPOINTS, STEERING, WHAT_RUNS),
)  # fmt: skip
