"""Every alert fires when it shall and is quiet when it shall be, by promtool, which evaluates the very rules."""

import re
import subprocess
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[3]
RULES = ROOT / "deploy" / "prometheus" / "rules"
RUNBOOK = ROOT / "docs" / "alerts.md"
GROUPS = {
    group["name"]: group["rules"]
    for file in ("recording.yml", "alerts.yml")
    for group in yaml.safe_load((RULES / file).read_text(encoding="utf-8"))["groups"]
}
ALERTS = {rule["alert"]: rule for rules in GROUPS.values() for rule in rules if "alert" in rule}
TARGET = {"job": "minichatgpt", "instance": "host:1", "run": "demo"}
RUNNING = {"step": "7x200", "updates_planned": "9x200", "paused": "0x200", "last_update_time_seconds": "1x200"}
QUICK = {"update_seconds_sum": "10x200", "update_seconds_count": "5x200"}
"""An update takes 2 seconds."""
SLOW = {"update_seconds_sum": "300x200", "update_seconds_count": "5x200"}
"""An update takes a minute."""
LEARNS = {"updates_total": "0+1x200"}
UNKNOWN = "NaNx200"


@dataclass(frozen=True)
class Case:
    """What a run shows in steps of 15 seconds, and whether the alert fires."""

    alert: str
    name: str
    at: str
    series: dict[str, str]
    """Values, as promtool writes them, by metric without prefix."""
    says: str = ""
    """The description, if it fires."""
    labels: dict[str, str] = field(default_factory=dict)
    """Of the alert, beside those of the target."""


def members(role, *, active, target):
    states = {f'members{{role="{role}",state="{state}"}}': "0x200" for state in ("starting", "draining")}
    return states | {
        f'members{{role="{role}",state="active"}}': f"{active}x200",
        f'members_target{{role="{role}"}}': f"{target}x200",
    }


def held(calls):
    return {'calls_held{role="rollout",slot="worker-0"}': f"{calls}x200"}


def behind(updates, *, max_staleness="0x200"):
    return {'weights_lag_updates{slot="worker-0"}': f"{updates}x200", "max_staleness": max_staleness}


def judged(unscored):
    return {'unscored_samples_total{reason="reward_error"}': unscored, "sample_score_count": "0+97x200"}


CASES = [
    Case("ScrapeDown", "does not answer", "3m", {"up": "0x200"},
         "host:1 has not answered Prometheus for a minute. A run that ends takes its target file away; this one has "
         "not."),
    Case("ScrapeDown", "answers", "3m", {"up": "1x200"}),
    Case("ScrapeDown", "has ended", "10m", {"up": "1x4 stale"}),

    Case("Stalled", "quick updates, two minutes without one", "5m", RUNNING | QUICK,
         "No update for 4m 59s, ten times as long as one takes (half an hour before the first), and the run is not "
         "paused."),
    Case("Stalled", "slow updates, eleven minutes without one", "11m", RUNNING | SLOW,
         "No update for 10m 59s, ten times as long as one takes (half an hour before the first), and the run is not "
         "paused."),
    Case("Stalled", "half an hour before the first update", "32m", RUNNING,
         "No update for 31m 59s, ten times as long as one takes (half an hour before the first), and the run is not "
         "paused."),
    Case("Stalled", "slow updates, five minutes without one", "5m", RUNNING | SLOW),
    Case("Stalled", "updates come", "20m", RUNNING | QUICK | {"last_update_time_seconds": "1+15x200"}),
    Case("Stalled", "paused", "20m", RUNNING | QUICK | {"paused": "1x200"}),
    Case("Stalled", "resumed a minute ago", "21m", RUNNING | QUICK | {"paused": "1x80 0x200"}),
    Case("Stalled", "all updates are done", "20m", RUNNING | QUICK | {"step": "9x200"}),
    Case("Stalled", "the first update is on its way", "20m", RUNNING),
    Case("Stalled", "another stage runs", "40m", dict.fromkeys(RUNNING, UNKNOWN) | {"paused": "0x200"}),
    Case("Stalled", "has ended", "20m", dict.fromkeys([*RUNNING, *QUICK], "1x4 stale")),

    Case("Paused", "paused", "2m", {"paused": "1x200"},
         "Somebody paused it; it keeps its workers and memory meanwhile."),
    Case("Paused", "runs", "2m", {"paused": "0x200"}),

    Case("LedgerMismatch", "a sample is lost", "3m", {"ledger_mismatch_samples": "1x200"},
         "1 samples were dispatched that are neither trained, rolled back, dropped, buffered nor in flight."),
    Case("LedgerMismatch", "a sample is counted twice", "3m", {"ledger_mismatch_samples": "-2x200"},
         "2 samples were dispatched that are neither trained, rolled back, dropped, buffered nor in flight."),
    Case("LedgerMismatch", "adds up", "3m", {"ledger_mismatch_samples": "0x200"}),
    Case("LedgerMismatch", "another stage runs", "3m", {"ledger_mismatch_samples": UNKNOWN}),

    Case("NoWorkers", "none is active", "4m", members("rollout", active=0, target=2),
         "For two minutes none has generated text; the learner waits.", {"role": "rollout"}),
    Case("NoWorkers", "one is active", "4m", members("rollout", active=1, target=2)),
    Case("NoWorkers", "none is wanted", "4m", members("rollout", active=0, target=0)),
    Case("NoWorkers", "they start", "90s", members("rollout", active=0, target=2)),

    Case("MembersMissing", "one is missing", "12m", members("reward", active=1, target=2),
         "1 have been missing for ten minutes.", {"role": "reward"}),
    Case("MembersMissing", "it starts", "5m", members("reward", active=1, target=2)),
    Case("MembersMissing", "all are there", "12m", members("reward", active=2, target=2)),

    Case("WorkerFlapping", "again and again", "10m", {'restarts_total{role="rollout"}': "0x8 1x8 2x8 3x200"},
         "3 restarts within 15 minutes.", {"role": "rollout"}),
    Case("WorkerFlapping", "in a run that has ended", "10m",
         {'restarts_total{role="rollout"}': "0x8 1x8 2x8 3x3 stale", "paused": "0x27 stale"}),
    Case("WorkerFlapping", "once", "10m", {'restarts_total{role="rollout"}': "0x8 1x200"}),
    Case("WorkerFlapping", "the learner", "10m", {'restarts_total{role="learner"}': "0x8 1x8 2x8 3x200"}),

    Case("LearnerRestarted", "lost", "10m", {'restarts_total{role="learner"}': "0x8 1x200"},
         "It was started anew 1 times within 15 minutes and went back to the newest checkpoint each time.",
         {"role": "learner"}),
    Case("LearnerRestarted", "never", "10m", {'restarts_total{role="learner"}': "0x200"}),
    Case("LearnerRestarted", "long ago", "40m", {'restarts_total{role="learner"}': "0x8 1x200"}),

    Case("StaleWeights", "busy and behind", "12m", behind(3) | held(1),
         "Its weights are 3 updates behind those published.", {"slot": "worker-0"}),
    Case("StaleWeights", "in its first call after a rest", "3m", behind(3) | held(1)),
    Case("StaleWeights", "idle and behind", "12m", behind(3) | held(0)),
    Case("StaleWeights", "has not fetched the newest yet", "12m", behind(1) | held(1)),
    Case("StaleWeights", "behind what running ahead explains", "12m", behind(5, max_staleness="1x200") | held(1),
         "Its weights are 5 updates behind those published.", {"slot": "worker-0"}),
    Case("StaleWeights", "generation runs ahead of learning", "12m", behind(4, max_staleness="1x200") | held(1)),
    Case("StaleWeights", "another stage runs", "12m", behind(3, max_staleness=UNKNOWN) | held(1)),

    Case("RewardFailing", "three of a hundred are not judged", "10m", judged("0+3x200"),
         "3% of the samples are not judged (100 %: no replica is active)."),
    Case("RewardFailing", "no replica is active", "4m", members("reward", active=0, target=2),
         "100% of the samples are not judged (100 %: no replica is active).", {"role": "reward"}),
    Case("RewardFailing", "all are judged", "10m", judged("0x200") | members("reward", active=2, target=2)),
    Case("RewardFailing", "one of ten thousand is not", "20m", judged("0x8 1x200")),
    Case("RewardFailing", "no stage needs it", "10m", members("reward", active=0, target=0) | judged("0x200")
         | {"sample_score_count": "0x200"}),

    Case("KLRunaway", "per token", "3m", LEARNS | {"kl_token_mean_nats": "0.8x200"},
         "KL is 0.80 nats per token, or so many times its target where that is above 5."),
    Case("KLRunaway", "more than five times its target", "3m", LEARNS | {"kl_token_mean_nats": "0.3x200",
         "kl_target_ratio": "5.2x200"},
         "KL is 5.20 nats per token, or so many times its target where that is above 5."),
    Case("KLRunaway", "at the target", "3m", LEARNS | {"kl_token_mean_nats": "0.25x200", "kl_target_ratio": "1x200"}),
    Case("KLRunaway", "without a target", "3m", LEARNS | {"kl_token_mean_nats": "0.25x200",
         "kl_target_ratio": UNKNOWN}),

    Case("EntropyCollapse", "a fifth of what it was", "20m", LEARNS | {"entropy_nats": "NaN 3x40 0.5x200"},
         "Entropy is 0.500 nats per token: below 0.05, or below a fifth of its highest within a day."),
    Case("EntropyCollapse", "next to nothing from the start", "3m", LEARNS | {"entropy_nats": "0.02x200"},
         "Entropy is 0.020 nats per token: below 0.05, or below a fifth of its highest within a day."),
    Case("EntropyCollapse", "falls by half", "20m", LEARNS | {"entropy_nats": "NaN 3x40 1.5x200"}),
    Case("EntropyCollapse", "before the first update", "20m", {"updates_total": "0x200", "entropy_nats": UNKNOWN}),

    Case("RewardUpWhileLengthUp", "both rise", "45m",
         {"response_length_tokens": "NaNx8 20x120 60x200", "score_mean": "NaNx8 0x120 2x200", "score_std": "NaN 1x400"},
         "Responses are 1.87 times as long as in the last 6 hours, and the score rose with them."),
    Case("RewardUpWhileLengthUp", "the score rises alone", "45m",
         {"response_length_tokens": "20x200", "score_mean": "NaNx8 0x120 2x200", "score_std": "1x200"}),
    Case("RewardUpWhileLengthUp", "the length rises alone", "45m",
         {"response_length_tokens": "NaNx8 20x120 60x200", "score_mean": "0x200", "score_std": "1x200"}),

    Case("OverOptimised", "is", "1m", {"over_optimised": "1x200"},
         "On held-out prompts the reward rises without the judge, which training never sees."),
    Case("OverOptimised", "is not", "1m", {"over_optimised": "0x200"}),

    Case("NonFiniteSteps", "two", "10m", {"nonfinite_steps_total": "0x8 2x200"},
         "2 steps within 15 minutes had a loss or gradient that is not finite."),
    Case("NonFiniteSteps", "none", "10m", {"nonfinite_steps_total": "0x200"}),

    Case("GuardRaised", "is", "1m", {'guard_alarm{guard="kl"}': "1x200"},
         "What it did stands in events.jsonl and in minichatgpt_guard_actions_total.", {"guard": "kl"}),
    Case("GuardRaised", "is not", "1m", {'guard_alarm{guard="kl"}': "0x200"}),

    Case("CheckpointTooOld", "more than an hour", "2h", RUNNING | QUICK | {"checkpoint_time_seconds": "1x500",
         "checkpoint_step": "3x500", "step": "7x500", "updates_planned": "9x500", "update_seconds_sum": "10x500",
         "update_seconds_count": "5x500"},
         "The newest checkpoint is 1h 59m 59s old: more than an hour, and more than 25 updates."),
    Case("CheckpointTooOld", "half an hour", "30m", RUNNING | QUICK | {"checkpoint_time_seconds": "1x200",
         "checkpoint_step": "3x200"}),
    Case("CheckpointTooOld", "nothing was done since", "2h", {"checkpoint_time_seconds": "1x500",
         "checkpoint_step": "7x500", "step": "7x500", "updates_planned": "9x500", "update_seconds_sum": "10x500",
         "update_seconds_count": "5x500"}),

    Case("CheckpointFailing", "one failed", "10m", {"checkpoint_failures_total": "0x8 1x200"},
         "1 saves failed within half an hour; two in a row end the run."),
    Case("CheckpointFailing", "none failed", "10m", {"checkpoint_failures_total": "0x200"}),
]  # fmt: skip


def full_series(name):
    """`name{a="b"}` with prefix and the target's labels."""
    metric, _, labels = name.rstrip("}").partition("{")
    prefix = "" if metric == "up" else "minichatgpt_"
    target = ",".join(f'{label}="{value}"' for label, value in TARGET.items())
    return f"{prefix}{metric}{{{target}{',' + labels if labels else ''}}}"


def rendered(text, labels):
    """What Prometheus makes of an annotation that shows labels only."""
    return re.sub(r"{{ \$labels\.(\w+) }}", lambda found: labels[found[1]], text)


def expected(case):
    if not case.says:
        return []
    labels = TARGET | case.labels
    annotations = {name: rendered(text, labels) for name, text in ALERTS[case.alert]["annotations"].items()}
    return [
        {
            "exp_labels": labels | ALERTS[case.alert]["labels"],
            "exp_annotations": annotations | {"description": case.says},
        }
    ]


def spelled(values):
    """promtool reads no `NaNx8`."""
    return re.sub(r"NaNx(\d+)", lambda found: " ".join(["NaN"] * (int(found[1]) + 1)), values)


def unit(case):
    return {
        "name": f"{case.alert}: {case.name}",
        "interval": "15s",
        "input_series": [
            {"series": full_series(name), "values": spelled(v)}
            for name, v in ({"paused": "0x200"} | case.series).items()
        ],
        "alert_rule_test": [{"eval_time": case.at, "alertname": case.alert, "exp_alerts": expected(case)}],
    }


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_fires_when_it_shall_and_only_then(alert, tool, tmp_path):
    file = tmp_path / "cases.yml"
    units = [unit(case) for case in CASES if case.alert == alert]
    test = {
        "rule_files": [str(RULES / "*.yml")],
        "evaluation_interval": "30s",
        "group_eval_order": list(GROUPS),
        "tests": units,
    }
    file.write_text(yaml.safe_dump(test), encoding="utf-8")
    done = subprocess.run(
        [tool("promtool"), "test", "rules", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_is_quiet():
    assert {case.alert for case in CASES if case.says} == set(ALERTS)
    assert {case.alert for case in CASES if not case.says} == set(ALERTS)


@pytest.mark.parametrize("alert", ALERTS)
def test_an_alert_says_how_bad_it_is_and_what_to_do(alert):
    rule = ALERTS[alert]
    assert rule["labels"]["severity"] in ("critical", "warning", "info")
    assert set(rule["annotations"]) == {"summary", "description", "runbook", "runbook_url"}
    assert rule["annotations"]["runbook_url"] == f"docs/alerts.md#{alert.lower()}"


def test_the_runbook_has_a_section_on_each_alert_and_on_no_other():
    sections = re.findall(r"^## (\w+)$", RUNBOOK.read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(sections) == sorted(ALERTS)
