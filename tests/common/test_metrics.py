"""The registry: names as Prometheus wants them, and values after a member, an update and the ledger have spoken."""

import math

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from common.metrics import EVALUATION_GAUGES, UPDATE_GAUGES, RunMetrics
from common.records import Identity, Stats, UpdateReport
from common.supervision import Ledger


@pytest.fixture
def metrics():
    return RunMetrics(CollectorRegistry())


@pytest.fixture
def value(metrics):
    def of(name, **labels):
        return metrics.registry.get_sample_value(f"minichatgpt_{name}", labels)

    return of


def report(**numbers):
    return UpdateReport(step=1, identity=Identity(0, 1), trained=(), metrics=numbers, seconds={})


def test_every_name_has_the_prefix_a_unit_where_there_is_one_and_total_on_counters_only(metrics):
    metrics.member("rollout", "w0", Stats(response_tokens=1, seconds={"generate": 0.1}, identity=Identity(0, 0)))
    families = list(metrics.registry.collect())
    assert len(families) == len(UPDATE_GAUGES) + len(EVALUATION_GAUGES) + 13
    for family in families:
        assert family.name.startswith("minichatgpt_")
        assert family.documentation.endswith(".")
        exported = {s.name for s in family.samples if not s.name.endswith("_created")}
        assert all(name.endswith("_total") == (family.type == "counter") for name in exported)
    gauges = [name for name, _ in UPDATE_GAUGES.values()]
    assert len(set(gauges)) == len(gauges)
    assert all(name.endswith("_nats") for key, (name, _) in UPDATE_GAUGES.items() if "kl_" in key and key != "kl_coef")


def test_two_runs_do_not_share_a_registry(metrics):
    metrics.update(report(score_mean=1.0))
    other = RunMetrics(CollectorRegistry())
    assert other.registry.get_sample_value("minichatgpt_updates_total") == 0


def test_an_update_sets_gauges_and_adds_to_counters(metrics, value):
    metrics.update(report(score_mean=1.5, kl_token_mean=0.25, response_tokens=100.0, nonfinite_steps=2.0, unheard=9.0))
    metrics.update(report(score_mean=-0.5, response_tokens=50.0, nonfinite_steps=0.0))
    assert value("updates_total") == 2
    assert value("tokens_trained_total") == 150
    assert value("nonfinite_steps_total") == 2
    assert value("score_mean") == -0.5
    assert value("kl_token_mean_nats") == 0.25  # an update that does not say keeps what was said


@pytest.mark.parametrize("key", UPDATE_GAUGES)
def test_every_declared_gauge_shows_its_own_number(metrics, value, key):
    metrics.update(report(**{other: 100.0 + i for i, other in enumerate(UPDATE_GAUGES)}))
    assert value(UPDATE_GAUGES[key][0]) == 100.0 + list(UPDATE_GAUGES).index(key)


@pytest.mark.parametrize("key", EVALUATION_GAUGES)
def test_an_evaluation_shows_every_declared_number_and_the_alarm(metrics, value, key):
    metrics.evaluation(4, {key: 7.5}, over_optimised=True)
    assert value(f"evaluation_{EVALUATION_GAUGES[key][0]}") == 7.5
    assert (value("evaluation_step"), value("over_optimised")) == (4, 1)
    metrics.evaluation(8, {}, over_optimised=False)
    assert value("over_optimised") == 0


def test_an_undefined_number_is_shown_as_undefined(metrics, value):
    metrics.update(report(explained_variance=math.nan))
    assert math.isnan(value("explained_variance"))


def test_a_member_counts_tokens_and_seconds_and_says_which_weights_it_used(metrics, value):
    for step in (3, 4):
        metrics.member(
            "rollout",
            "worker-1",
            Stats(
                response_tokens=70, seconds={"generate": 0.5, "fetch": 0.02}, identity=Identity(0, step), probe_gap=1e-6
            ),
        )
    assert value("tokens_generated_total", worker="worker-1") == 140
    assert value("weights_step", worker="worker-1") == 4
    assert value("probe_gap_nats", worker="worker-1") == 1e-6
    assert value("phase_seconds_sum", role="rollout", phase="generate") == 1.0
    assert value("phase_seconds_count", role="rollout", phase="fetch") == 2
    assert value("phase_seconds_bucket", role="rollout", phase="generate", le="0.3") == 0
    assert value("phase_seconds_bucket", role="rollout", phase="generate", le="1.0") == 2


def test_a_reward_replica_generates_nothing_and_holds_no_weights(metrics, value):
    metrics.member("reward", "replica-0", Stats(samples=8, seconds={"score": 0.1}))
    assert value("phase_seconds_count", role="reward", phase="score") == 1
    assert value("tokens_generated_total", worker="replica-0") is None
    assert value("weights_step", worker="replica-0") is None


def test_phases_of_the_learner_are_observed(metrics, value):
    metrics.phases("learner", {"train": 2.0, "prepare": 0.5})
    assert value("phase_seconds_sum", role="learner", phase="train") == 2.0


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
    dropped = {r: value("samples", fate="dropped", reason=r) for r in ("", "reward_timeout", "reward_nonfinite")}
    assert fates == {"trained": 4, "rolled_back": 0, "buffered": 3, "in_flight": 1}
    assert dropped == {"": 0, "reward_timeout": 1, "reward_nonfinite": 1}
    assert value("samples_dispatched") == sum(fates.values()) + sum(dropped.values()) == 10
    assert value("samples_duplicate") == 5, "outside of the equation"


def series(metrics):
    """All that is exported, values left out."""
    return {(s.name, *sorted(s.labels.items())) for family in metrics.registry.collect() for s in family.samples}


def test_members_that_come_and_go_leave_no_series_behind(metrics, value):
    used = Stats(response_tokens=7, seconds={"generate": 0.1}, identity=Identity(0, 3), probe_gap=1e-6)
    metrics.member("rollout", "worker-0", used)
    before = series(metrics)
    for number in range(1, 51):
        metrics.member("rollout", f"worker-{number}", used)
        metrics.member("reward", f"replica-{number}", Stats(samples=8, seconds={"score": 0.1}))
        assert value("weights_step", worker=f"worker-{number}") == 3
        metrics.departed(f"worker-{number}")
        metrics.departed(f"replica-{number}")
    grown = series(metrics) - before
    assert {dict(labels)["role"] for _, *labels in grown} == {"reward"}, "seconds are by role, not by member"
    assert value("tokens_generated_total", worker="worker-0") == 7, "who stays keeps its series"
    assert value("phase_seconds_count", role="rollout", phase="generate") == 51


def test_events_of_members_are_counted_by_name(metrics, value):
    for name in ("restart", "active", "restart"):
        metrics.event(name)
    assert value("events_total", event="restart") == 2
    assert value("events_total", event="active") == 1


def test_what_is_exported_can_be_scraped(metrics):
    metrics.update(report(score_mean=1.0))
    text = generate_latest(metrics.registry).decode()
    assert "minichatgpt_score_mean 1.0\n" in text
    assert "# TYPE minichatgpt_updates_total counter" in text
