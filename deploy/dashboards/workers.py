"""Workers: is each of them alive, busy and up to date?"""

from typing import Final

from deploy.dashboards.panels import Dashboard, Panel, Query, Row, happened, per_second, series

MEMBERS: Final = Row("Members", (
    Panel("Members by state", (Query(series("members"), "{{run}} {{role}} {{state}}"),), width=12, stacked=True),
    Panel("Asked for and active", (Query(series("members_target"), "{{run}} {{role}} asked for"),
                                   Query(series("members", 'state="active"'), "{{run}} {{role}} active")), width=12),
    Panel("Restarts", (Query(happened("restarts", "role"), "{{run}} {{role}}"),)),
    Panel("Deadlines passed", (Query(happened("timeouts", "role, phase"), "{{run}} {{role}} {{phase}}"),)),
    Panel("Resizes", (Query(happened("resizes", "role"), "{{run}} {{role}}"),)),
    Panel("Wanted by the autoscaler", (Query(series("autoscaler_target"), "{{run}} {{role}}"),), width=12,
          note="Empty unless autoscaler.enabled."),
    Panel("Decisions of the autoscaler", (Query(happened("autoscaler_decisions", "direction"),
                                                "{{run}} {{direction}}"),), width=12),
))  # fmt: skip

WORK: Final = Row("Work, by slot", (
    Panel("Tokens generated", (Query(per_second("generated_tokens", "slot"), "{{run}} {{slot}}"),),
          "suffix: tokens/s"),
    Panel("Share of the time at work", (Query(per_second("busy_seconds", "role, slot"), "{{run}} {{role}} {{slot}}"),),
          "percentunit"),
    Panel("Calls held", (Query(series("calls_held"), "{{run}} {{role}} {{slot}}"),)),
    Panel("Since the last sign of life", (Query(series("heartbeat_age_seconds"), "{{run}} {{role}} {{slot}}"),), "s",
          steps=((10, "yellow"), (20, "red")), note="rollout.heartbeat_timeout_s is 20 unless it is set."),
    Panel("Memory", (Query(series("memory_bytes"), "{{run}} {{role}} {{slot}}"),), "bytes", width=16),
))  # fmt: skip

WEIGHTS: Final = Row("Weights", (
    Panel("Weights held and published", (Query(series("weights_step"), "{{run}} {{slot}}"),
                                         Query(series("published_step"), "{{run}} published"))),
    Panel("Updates behind", (Query(series("weights_lag_updates"), "{{run}} {{slot}}"),
                             Query(f"1 + 3 * {series('max_staleness')}", "{{run}} allowed"))),
    Panel("Age of the weights held", (Query(series("weights_age_seconds"), "{{run}} {{slot}}"),), "s"),
    Panel("Since the last publish", (Query(f"time() - ({series('published_time_seconds')} > 0)"),), "s"),
    Panel("Lineage", (Query(series("weights_lineage"), "{{run}} {{slot}}"), Query(series("lineage"), "{{run}}"))),
    Panel("Gap on the probe prompts", (Query(series("probe_gap_nats"), "{{run}} {{slot}}"),), "sci",
          steps=((0.001, "red"),)),
))  # fmt: skip

NODES: Final = Row("Nodes, from Ray's own metrics", (
    Panel("CPU", (Query("ray_node_cpu_utilization", "{{instance}}"),), "percent",
          note="Needs the job `ray` of prometheus.yml."),
    Panel("Memory", (Query("ray_node_mem_used", "{{instance}} used"),
                     Query("ray_node_mem_total", "{{instance}} there")), "bytes",
          note="Needs the job `ray` of prometheus.yml."),
    Panel("Object store", (Query("sum by (instance) (ray_object_store_memory)", "{{instance}}"),), "bytes",
          note="Weights and samples on their way lie there. Needs the job `ray` of prometheus.yml."),
))  # fmt: skip

WORKERS: Final = Dashboard(
    "mini-chatgpt-workers", "Workers", "Is each worker alive, busy and up to date?", (MEMBERS, WORK, WEIGHTS, NODES)
)
