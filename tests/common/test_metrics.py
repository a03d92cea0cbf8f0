"""The registry: names as Prometheus wants them, and values once updates, the ledger and others have spoken."""

import math
import time
from typing import get_args

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from common.guards_config import Action, GuardsConfig
from common.metric_catalogue import CATALOGUE, GROUPS, PREFIX
from common.metric_labels import DROPPED, GUARD_ACTIONS, GUARDS, KNOWN, ROUTES_AT_MOST
from common.metrics import RunMetrics
from common.records import Identity, UpdateReport
from common.run_settings import RunSettings
from common.supervision import Ledger

REPORTED = {metric.report: metric.name for metric in CATALOGUE.values() if metric.report}
OF_UPDATES = [key for key in REPORTED if not key.startswith("evaluation.")]
OF_EVALUATIONS = [key for key in REPORTED if key.startswith("evaluation.")]


@pytest.fixture
def metrics():
    return RunMetrics(CollectorRegistry())


@pytest.fixture
def value(metrics):
    def of(name, **labels):
        return metrics.registry.get_sample_value(f"minichatgpt_{name}", labels)

    return of


def report(**numbers):
    return UpdateReport(step=1, identity=Identity(2, 1), trained=(), metrics=numbers, seconds={})


# --- the catalogue


def test_every_metric_of_the_catalogue_is_there_once_and_no_other(metrics):
    families = {family.name: family for family in metrics.registry.collect()}
    assert set(families) == {PREFIX + name for name in CATALOGUE}
    assert {name: families[PREFIX + name].type for name in CATALOGUE} == {m.name: m.type for m in CATALOGUE.values()}
    assert len(CATALOGUE) == sum(map(len, GROUPS.values())), "no name is declared twice"


def test_names_end_in_their_unit_and_all_has_a_meaning():
    units = {"seconds": "seconds", "bytes": "bytes", "nats": "nats"}
    for metric in CATALOGUE.values():
        assert metric.meaning.endswith("."), metric.name
        assert not metric.worry or metric.worry.endswith("."), metric.name
        assert metric.full_name.endswith("_total") == (metric.type == "counter")
        if metric.unit in units:
            assert units[metric.unit] in metric.name, metric.name
        if metric.name.endswith("_ratio"):
            assert metric.unit == "1"
        assert bool(metric.buckets) == (metric.type == "histogram"), metric.name
        assert not {"pid", "node", "text", "le"} & set(metric.labels)


def test_label_values_that_are_known_are_of_metrics_that_there_are():
    for name, values in KNOWN.items():
        assert {len(one) for one in values} == {len(CATALOGUE[name].labels)}, name


def test_guard_rails_are_those_that_can_be_configured():
    tables = GuardsConfig.model_fields
    assert set(GUARDS) == {name for name, field in tables.items() if hasattr(field.annotation, "model_fields")}
    assert set(GUARD_ACTIONS) == set(get_args(Action)) - {"off"}


def test_series_whose_labels_are_known_are_there_from_the_start_at_0(metrics, value):
    """So that the first increase is one, for rate()."""
    assert value("restarts_total", role="learner") == 0
    assert value("timeouts_total", role="reward", phase="score") == 0
    assert value("samples", fate="dropped", reason="reward_timeout") == 0
    assert value("request_seconds_count", role="rollout", method="generate") == 0
    assert value("metrics_seconds_total") == 0


def test_what_is_not_known_yet_is_undefined_and_sets_off_no_alert(metrics, value):
    unknown = [m for m in CATALOGUE.values() if m.type == "gauge" and not m.labels and m.name != "paused"]
    assert all(math.isnan(value(metric.name)) for metric in unknown)
    assert value("paused") == 0


def test_two_runs_do_not_share_a_registry(metrics):
    metrics.update(report(score_mean=1.0))
    other = RunMetrics(CollectorRegistry())
    assert other.registry.get_sample_value("minichatgpt_updates_total") == 0


def test_seconds_spent_on_metrics_are_counted(metrics, value, monkeypatch):
    monkeypatch.setattr(time, "perf_counter", iter([10.0, 10.25, 20.0, 20.5]).__next__)
    metrics.event("restart")
    with pytest.raises(AttributeError):
        metrics.update(None)
    assert value("metrics_seconds_total") == 0.75


# --- the run


def test_a_stage_that_begins_says_when_and_from_where(metrics, value):
    before = time.time()
    metrics.began(Identity(3, 20), 100, max_staleness=2)
    assert (value("step"), value("lineage"), value("updates_planned")) == (20, 3, 100)
    assert value("max_staleness") == 2
    for name in ("start_time_seconds", "last_update_time_seconds", "checkpoint_time_seconds"):
        assert before <= value(name) <= time.time()
    metrics.went_back(Identity(4, 10))
    assert (value("step"), value("lineage")) == (10, 4)


def test_settings_that_a_run_has_are_shown_and_their_changes_counted(metrics, value):
    metrics.settings(RunSettings(temperature=0.9, learning_rate=1e-4, kl_target=None, kl_coef=0.1))
    metrics.setting_changed("kl_coef")
    assert value("setting", setting="kl_coef") == 0.1
    assert value("setting_changes_total", setting="kl_coef") == 1
    assert value("setting_changes_total", setting="temperature") == 0
    assert value("setting", setting="kl_target") is None


def test_guard_rails_pauses_and_losses_are_told(metrics, value):
    metrics.guard_alarm("kl", True)
    metrics.guard_action("kl", "roll_back")
    metrics.rolled_back()
    metrics.paused(True)
    metrics.learner_lost("")
    metrics.learner_lost("update")
    assert value("guard_alarm", guard="kl") == 1
    assert value("guard_actions_total", guard="kl", action="roll_back") == 1
    assert (value("rollbacks_total"), value("paused")) == (1, 1)
    assert value("restarts_total", role="learner") == 2
    assert value("timeouts_total", role="learner", phase="update") == 1
    metrics.guard_alarm("kl", False)
    assert value("guard_alarm", guard="kl") == 0


def test_what_runs_is_in_labels(metrics, value):
    metrics.build(version="0.1.0", python="3.11.7", torch="2.13.0", ray="2.60.0")
    metrics.run("demo", "ray")
    assert value("build_info", version="0.1.0", python="3.11.7", torch="2.13.0", ray="2.60.0") == 1
    assert value("run_info", run="demo", runtime="ray") == 1


# --- updates


def test_an_update_sets_gauges_and_adds_to_counters(metrics, value):
    metrics.update(report(score_mean=1.5, kl_token_mean=0.25, response_tokens=100.0, nonfinite_steps=2.0, unheard=9.0))
    metrics.update(report(score_mean=-0.5, response_tokens=50.0, nonfinite_steps=0.0))
    assert value("updates_total") == 2
    assert value("trained_tokens_total") == 150
    assert value("nonfinite_steps_total") == 2
    assert value("score_mean") == -0.5
    assert value("kl_token_mean_nats") == 0.25  # an update that does not say keeps what was said
    assert (value("step"), value("lineage")) == (1, 2)


def test_an_update_without_a_finite_step_is_none(metrics, value):
    metrics.began(Identity(0, 7), 10, max_staleness=0)
    bad = UpdateReport(7, Identity(0, 7), (), {"nonfinite_steps": 3.0, "score_mean": 9.0}, {}, is_finite=False)
    metrics.update(bad)
    assert (value("updates_total"), value("nonfinite_steps_total"), value("step")) == (0, 3, 7)
    assert math.isnan(value("score_mean"))


@pytest.mark.parametrize("key", OF_UPDATES)
def test_every_declared_gauge_shows_its_own_number(metrics, value, key):
    metrics.update(report(**{other: 100.0 + i for i, other in enumerate(OF_UPDATES)}))
    assert value(REPORTED[key]) == 100.0 + OF_UPDATES.index(key)


@pytest.mark.parametrize("key", OF_EVALUATIONS)
def test_an_evaluation_shows_every_declared_number_and_the_alarm(metrics, value, key):
    metrics.evaluation(4, {key.removeprefix("evaluation."): 7.5}, over_optimised=True)
    assert value(REPORTED[key]) == 7.5
    assert (value("evaluation_step"), value("over_optimised")) == (4, 1)
    metrics.evaluation(8, {}, over_optimised=False)
    assert value("over_optimised") == 0


def test_an_undefined_number_is_shown_as_undefined(metrics, value):
    metrics.update(report(explained_variance=1.0))
    metrics.update(report(explained_variance=math.nan))
    assert math.isnan(value("explained_variance_ratio"))


def test_the_time_of_an_update_is_told_by_phase_of_the_loop(metrics, value):
    seconds = {"collect": 3.0, "update": 2.0, "flatten": 0.5, "publish": 0.25, "generate": 9.0, "total": 6.0}
    metrics.cycle(seconds, 5.5, {"rollout": 0.5, "learner": 0.25})
    assert value("loop_seconds_total", phase="collect") == 3
    assert value("loop_seconds_total", phase="generate") is None, "that is of the members"
    assert value("update_seconds_sum") == 5.5
    assert value("publish_seconds_sum", part="take") == 0.75, "copied and hashed in the update, then handed over"
    assert value("busy_seconds_total", role="learner", slot="learner") == 2.25
    assert value("busy_ratio", role="rollout") == 0.5


# --- what must not be lost


def test_the_fates_add_up_to_what_was_dispatched(metrics, value):
    ledger = Ledger()
    ledger.dispatch(10)
    ledger.buffer(7)
    ledger.train(4)
    ledger.drop("reward_timeout", 1)
    ledger.drop("reward_nonfinite", 1)
    ledger.duplicates = 5
    metrics.ledger(ledger)
    fates = {f: value("samples", fate=f, reason="") for f in ("trained", "rolled_back", "buffered", "in_flight")}
    dropped = {r: value("samples", fate="dropped", reason=r) for r in ("", *DROPPED, "other")}
    assert fates == {"trained": 4, "rolled_back": 0, "buffered": 3, "in_flight": 1}
    assert {r: n for r, n in dropped.items() if n} == {"reward_timeout": 1, "reward_nonfinite": 1}
    assert value("samples_dispatched") == sum(fates.values()) + sum(dropped.values()) == 10
    assert value("samples_duplicate") == 5, "outside of the equation"
    assert value("ledger_mismatch_samples") == 0
    ledger.in_flight = 0
    metrics.ledger(ledger)
    assert value("ledger_mismatch_samples") == 1


def test_checkpoints_are_told_by_part(metrics, value):
    metrics.saved("snapshot", 0.25)
    metrics.saved("write", 2.0)
    metrics.checkpoint(7, 1000.5, 4096)
    metrics.save_failed()
    assert value("checkpoint_seconds_sum", part="snapshot") == 0.25
    assert value("checkpoint_seconds_count", part="write") == 1
    assert [value(f"checkpoint_{name}") for name in ("step", "time_seconds", "bytes")] == [7, 1000.5, 4096]
    assert value("checkpoint_failures_total") == 1


# --- labels


def series(metrics):
    """All that is exported, values left out."""
    return {(s.name, *sorted(s.labels.items())) for family in metrics.registry.collect() for s in family.samples}


def test_texts_are_no_label_values(metrics, value):
    text = "ValueError: could not score 'the film…' (worker 7, pid 4711)"
    ledger = Ledger()
    ledger.dispatch(3)
    ledger.drop(text, 1)
    ledger.drop("of a later version", 2)
    metrics.ledger(ledger)
    metrics.event(text)
    metrics.event("restart")
    metrics.guard_action(text, "warn")
    metrics.setting_changed(text)
    metrics.learner_lost(text)
    assert value("samples", fate="dropped", reason="other") == 3
    assert (value("events_total", event="other"), value("events_total", event="restart")) == (1, 1)
    assert value("guard_actions_total", guard="other", action="warn") == 1
    assert value("timeouts_total", role="learner", phase="other") == 1
    assert not [one for one in series(metrics) if any("film" in label for _, label in one[1:])]


def test_paths_that_clients_make_up_do_not_grow_the_number_of_series(metrics, value):
    for route in ["/healthz", *(f"/{number}" for number in range(1000)), "no path", "/healthz"]:
        metrics.control_request(route, 200)
    assert value("control_requests_total", route="/healthz", status="200") == 2
    routes = {dict(s[1:])["route"] for s in series(metrics) if s[0] == "minichatgpt_control_requests_total"}
    assert len(routes) == ROUTES_AT_MOST + 1
    assert value("control_requests_total", route="other", status="200") == 1003 - ROUTES_AT_MOST - 1


def test_what_is_exported_can_be_scraped(metrics):
    metrics.update(report(score_mean=1.0))
    text = generate_latest(metrics.registry).decode()
    assert "minichatgpt_score_mean 1.0\n" in text
    assert "# TYPE minichatgpt_updates_total counter" in text
