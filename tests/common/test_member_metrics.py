"""What Prometheus is told of pools and members: calls, slots that come and go, and what waits."""

import pytest
from prometheus_client import CollectorRegistry

from common.metrics import RunMetrics
from common.pool_actions import Counted, Done
from common.records import Identity, Stats, TensorSpec, WeightsHandle


@pytest.fixture
def metrics():
    return RunMetrics(CollectorRegistry())


@pytest.fixture
def value(metrics):
    def of(name, **labels):
        return metrics.registry.get_sample_value(f"minichatgpt_{name}", labels)

    return of


def series(metrics):
    return {(s.name, *sorted(s.labels.items())) for family in metrics.registry.collect() for s in family.samples}


def generated(slot, **changed):
    stats = {
        "samples": 2,
        "response_tokens": 70,
        "prompt_tokens": 9,
        "response_lengths": (30, 40),
        "seconds": {"fetch": 0.25, "verify": 0.125, "load": 0.5, "generate": 2.0},
        "identity": Identity(0, 3),
        "probe_gap": 1e-6,
    }
    return Done(1, "generate", "rollout", slot, None, Stats(**stats | changed), queued_s=0.5, took_s=3.0)


def judged(slot, method="score", **changed):
    stats = {"samples": 3, "scores": (0.25, -2.0), "seconds": {"score": 0.5}}
    return Done(1, method, "reward", slot, None, Stats(**stats | changed), queued_s=0.0, took_s=0.75)


def slot(name, **changed):
    return {
        "name": name,
        "state": "active",
        "described": {},
        "identity": None,
        "held": 0,
        "heartbeat_age_s": 0.5,
        "weights_age_s": None,
        "weights_lag": None,
    } | changed


def pools(*slots, **changed):
    return {"rollout": {"target": 2, "queued": 0, "queue_age_s": 0.0, "slots": list(slots)} | changed}


def test_tokens_are_counted_by_the_way_of_the_engine_that_generated_them(metrics, value):
    metrics.members.joined("worker-1")
    for engine in ("llama_packed", "llama_packed", "generic", None):
        metrics.members.answered(generated("worker-1", engine=engine))
    counted = [value("engine_tokens_total", path=path) for path in ("llama_packed", "llama", "generic")]
    assert counted == [140, 0, 70]


def test_a_worker_counts_tokens_seconds_and_what_it_paused_for(metrics, value):
    metrics.members.joined("worker-1")
    for _ in range(2):
        metrics.members.answered(generated("worker-1"))
    assert value("generated_tokens_total", slot="worker-1") == 140
    assert value("prompt_tokens_total", slot="worker-1") == 18
    assert value("busy_seconds_total", role="rollout", slot="worker-1") == 2 * 2.875
    assert value("probe_gap_nats", slot="worker-1") == 1e-6
    assert value("phase_seconds_sum", role="rollout", phase="generate") == 4
    assert value("phase_seconds_bucket", role="rollout", phase="generate", le="1.0") == 0
    assert value("phase_seconds_bucket", role="rollout", phase="generate", le="3.0") == 2
    assert value("publish_seconds_sum", part="load") == 1
    assert value("publish_seconds_sum", part="pause") == 2 * 0.875
    assert value("sample_response_tokens_count") == 4
    assert value("sample_response_tokens_bucket", le="32.0") == 2
    assert value("request_queue_seconds_sum", role="rollout", method="generate") == 1
    assert value("request_seconds_sum", role="rollout", method="generate") == 6


def test_a_call_for_which_no_weights_were_fetched_is_no_publishing(metrics, value):
    metrics.members.answered(generated("worker-0", seconds={"generate": 1.0}))
    assert value("publish_seconds_count", part="pause") == 0


def test_a_replica_tells_scores_and_batches_and_those_of_held_out_prompts_are_no_samples(metrics, value):
    metrics.members.joined("replica-0")
    metrics.members.answered(judged("replica-0"))
    metrics.members.answered(judged("replica-0", method="evaluate"))
    assert value("sample_score_count") == 2
    assert value("sample_score_bucket", le="-2.0") == 1
    assert (value("reward_batch_samples_count"), value("reward_batch_samples_sum")) == (2, 6)
    assert value("busy_seconds_total", role="reward", slot="replica-0") == 1
    assert value("generated_tokens_total", slot="replica-0") is None
    assert value("request_seconds_count", role="reward", method="evaluate") == 1


def test_an_answer_of_one_that_is_gone_brings_back_no_series(metrics, value):
    metrics.members.joined("worker-1")
    metrics.members.departed("worker-1")
    before = series(metrics)
    metrics.members.answered(generated(""))
    metrics.members.answered(generated("worker-1"))
    metrics.members.looked(pools(slot("worker-1")), {})
    assert series(metrics) == before
    assert value("phase_seconds_count", role="rollout", phase="generate") == 2, "its work counts all the same"


def test_members_that_come_and_go_leave_no_series_behind(metrics, value):
    def live(name, role="rollout"):
        metrics.members.joined(name)
        metrics.members.answered(generated(name) if role == "rollout" else judged(name))
        held = {"identity": Identity(0, 3), "weights_age_s": 1.0, "weights_lag": 0, "described": {"rss_bytes": 5}}
        seen = pools(slot(name, **held if role == "rollout" else {}))["rollout"]
        metrics.members.looked({role: seen}, {})

    live("worker-0")
    before = series(metrics)
    for number in range(1, 51):
        live(f"worker-{number}")
        live(f"replica-{number}", role="reward")
        assert value("weights_step", slot=f"worker-{number}") == 3
        metrics.members.departed(f"worker-{number}")
        metrics.members.departed(f"replica-{number}")
    assert series(metrics) == before
    assert value("generated_tokens_total", slot="worker-0") == 70, "who stays keeps its series"


def test_pools_as_they_are(metrics, value):
    metrics.members.joined("worker-0")
    metrics.members.joined("worker-1")
    held = {"identity": Identity(2, 7), "weights_age_s": 4.5, "weights_lag": 3, "described": {"rss_bytes": 1000}}
    metrics.members.looked(
        pools(
            slot("worker-0", held=2, **held),
            slot("worker-1", state="starting", heartbeat_age_s=None),
            queued=5,
            queue_age_s=1.5,
        ),
        {"driver": 10, "learner": 20},
    )
    assert [value("members", role="rollout", state=state) for state in ("active", "starting", "given_up")] == [1, 1, 0]
    assert (value("members_target", role="rollout"), value("queue_length", role="rollout")) == (2, 5)
    assert value("queue_age_seconds", role="rollout") == 1.5
    of = {"role": "rollout", "slot": "worker-0"}
    assert (value("calls_held", **of), value("heartbeat_age_seconds", **of), value("memory_bytes", **of)) == (
        2, 0.5, 1000,
    )  # fmt: skip
    names = ("weights_step", "weights_lineage", "weights_age_seconds", "weights_lag_updates")
    assert [value(name, slot="worker-0") for name in names] == [7, 2, 4.5, 3]
    assert [value(name, slot="worker-1") for name in names] == [None] * 4, "it holds none yet"
    assert value("memory_bytes", role="learner", slot="learner") == 20
    metrics.members.closed()
    assert value("members", role="rollout", state="active") == 0
    assert value("weights_step", slot="worker-0") is None


def test_published_weights(metrics, value):
    specs = (TensorSpec("a", (2, 3), "float32", 0), TensorSpec("b", (4,), "float32", 6))
    metrics.members.published(WeightsHandle(Identity(0, 5), None, 0, specs))
    assert (value("published_step"), value("published_bytes")) == (5, 40)
    assert value("published_time_seconds") > 1e9


def test_what_is_only_counted(metrics, value):
    for what, label, amount in (
        ("restarts", "", 1), ("resizes", "", 1), ("timeouts", "score", 1), ("timeouts", "a text", 1),
        ("unscored", "reward_error", 8), ("unscored", "my scorer said no", 2),
    ):  # fmt: skip
        metrics.members.count(Counted("reward", what, label, amount))
    assert (value("restarts_total", role="reward"), value("resizes_total", role="reward")) == (1, 1)
    assert value("timeouts_total", role="reward", phase="score") == 1
    assert value("timeouts_total", role="reward", phase="other") == 1
    assert value("unscored_samples_total", reason="reward_error") == 8
    assert value("unscored_samples_total", reason="other") == 2


def test_a_phase_that_nobody_foresaw_is_other(metrics, value):
    metrics.members.answered(judged("replica-0", seconds={"scorer says 17": 1.0}))
    assert value("phase_seconds_count", role="reward", phase="other") == 1


def test_what_is_not_known_any_more_is_not_told_as_if_it_were(metrics, value):
    """A member that died uses no memory; of weights that nobody remembers, an age that stands still would be wrong."""
    metrics.members.joined("worker-0")
    held = {"identity": Identity(2, 7), "weights_age_s": 4.5, "weights_lag": 3, "described": {"rss_bytes": 1000}}
    metrics.members.looked(pools(slot("worker-0", **held)), {})
    metrics.members.looked(pools(slot("worker-0", **held | {"weights_age_s": None})), {})
    assert (value("weights_age_seconds", slot="worker-0"), value("weights_step", slot="worker-0")) == (None, 7)
    metrics.members.looked(pools(slot("worker-0", state="starting", heartbeat_age_s=None)), {})
    of = {"role": "rollout", "slot": "worker-0"}
    assert [value(name, **of) for name in ("memory_bytes", "heartbeat_age_seconds", "calls_held")] == [None, None, 0]
    names = ("weights_step", "weights_lineage", "weights_lag_updates")
    assert [value(name, slot="worker-0") for name in names] == [None] * 3
