"""The conductor over a transport that answers in an order of its own, late, never, or with errors."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import LedgerError, MemberFailedError, NonFiniteError, PhaseTimeoutError
from common.records import Identity, UpdateReport, WeightsHandle

LIMIT_S = 50.0


def weights_of(step):
    return WeightsHandle(Identity(0, step), f"buffer {step}", step, ())


def report_of(step, handles):
    trained = tuple((draw, 0) for handle in handles for draw in handle.draw_indices)
    return UpdateReport(step, Identity(0, step), trained, {}, {})


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), workers=st.integers(1, 4), replicas=st.integers(1, 3))
def test_handles_come_in_chunk_order_with_their_own_payloads_whoever_answers_first(
    make_conductor, seed, workers, replicas
):
    conductor, transport = make_conductor(seed=seed, workers=workers, replicas=replicas)
    handles = conductor.collect(32)
    assert [h.chunk_index for h in handles] == [0, 1, 2, 3]
    assert [draw for h in handles for draw in h.draw_indices] == list(range(32))
    for handle in handles:
        assert tuple(r.draw_index for r in handle.rollouts.rollouts) == handle.draw_indices
        assert tuple(j.draw_index for j in handle.judgements.judgements) == handle.draw_indices
        assert tuple(-int(row[0]) for row in handle.reference.logprobs) == handle.draw_indices
        assert handle.rollout_stats.seconds == {"generate": 0.25}
        assert handle.judge_stats.seconds == {"score": 0.5}
    assert not transport.open
    assert len(transport.sent) == 4 * 3
    conductor.ledger.check()


def test_what_is_asked_for_does_not_depend_on_workers_or_on_the_order_of_answers(make_conductor):
    # Decision 7: chunks are fixed; 1, 2 and 4 workers get the same requests between them.
    asked = []
    for seed, workers in enumerate((1, 2, 4)):
        conductor, transport = make_conductor(seed=seed, workers=workers)
        conductor.collect(32)
        described = {
            r.chunk_index: (r.fill, [(p.draw_index, tuple(p.token_ids), p.max_new_tokens) for p in r.prompts])
            for r in transport.requests()
        }
        asked.append(described)
    assert asked[0] == asked[1] == asked[2]


def test_work_is_spread_over_all_members(make_conductor):
    conductor, transport = make_conductor(workers=4, replicas=2)
    conductor.collect(32)
    assert {c.member for c in transport.sent if c.role == "rollout"} == {f"worker-{i}" for i in range(4)}
    assert {c.member for c in transport.sent if c.role == "reward"} == {"replica-0", "replica-1"}


TWENTY = ("ppo.trajectories_per_update=20", "ppo.minibatch_sequences=10", "ppo.microbatch_sequences=5")


def test_a_short_last_chunk_is_filled_to_its_size_and_yields_only_its_own(make_conductor):
    conductor, transport = make_conductor(*TWENTY)
    handles = conductor.collect(20)
    requests = sorted(transport.requests(), key=lambda r: r.chunk_index)
    assert [(len(r.prompts), r.fill) for r in requests] == [(8, 0), (8, 0), (4, 4)]
    assert [len(h.draw_indices) for h in handles] == [8, 8, 4]
    assert sum(h.rollout_stats.samples for h in handles) == 20


def test_requests_carry_the_published_weights_the_run_seed_and_the_temperature(make_conductor):
    conductor, transport = make_conductor("seed=77", "ppo.temperature=0.7")
    conductor.collect(32)
    for request in transport.requests():
        assert request.weights == weights_of(0)
        assert (request.run_seed, request.temperature, request.attempt, request.sample_index) == (77, 0.7, 0, 0)


def test_each_update_goes_on_in_the_stream_with_the_new_weights(make_conductor):
    conductor, transport = make_conductor()
    for step in range(3):
        conductor.publish(weights_of(step))
        before = len(transport.requests())
        handles = conductor.collect(32)
        assert [d for h in handles for d in h.draw_indices] == list(range(32 * step, 32 * step + 32))
        assert [h.chunk_index for h in handles] == list(range(4 * step, 4 * step + 4))
        assert {r.weights.identity.step for r in transport.requests()[before:]} == {step}
        conductor.account(report_of(step + 1, handles))


def test_the_ledger_follows_samples_from_dispatch_to_training(make_conductor):
    # Traps 26 and 32: counted where they are, and asserted at every step.
    conductor, _ = make_conductor()
    handles = conductor.collect(32)
    assert (conductor.ledger.dispatched, conductor.ledger.buffered, conductor.ledger.trained) == (32, 32, 0)
    conductor.account(report_of(1, handles))
    assert (conductor.ledger.dispatched, conductor.ledger.buffered, conductor.ledger.trained) == (32, 0, 32)
    shown = {
        sample.labels["fate"]: sample.value
        for metric in conductor.metrics.registry.collect()
        if metric.name == "minichatgpt_samples"
        for sample in metric.samples
    }
    assert shown == {"trained": 32, "buffered": 0, "in_flight": 0, "rolled_back": 0, "dropped": 0}


def test_training_on_more_than_was_collected_is_found(make_conductor):
    conductor, _ = make_conductor()
    handles = conductor.collect(32)
    with pytest.raises(LedgerError):
        conductor.account(report_of(1, [*handles, handles[0]]))


def test_samples_outside_of_training_are_not_in_the_ledger_and_move_no_stream(make_conductor):
    conductor, _ = make_conductor()
    prompts = conductor.prompts.take(12)
    cursor = conductor.prompts.next_draw_index
    handles = conductor.sample(prompts)
    assert [len(h.draw_indices) for h in handles] == [8, 4]
    assert conductor.ledger.dispatched == 0
    assert conductor.prompts.next_draw_index == cursor


def test_without_a_reference_in_the_service_none_is_asked_for(make_conductor):
    conductor, transport = make_conductor("ppo.reference=shared_trunk", "ppo.trainable_layers=1")
    handles = conductor.collect(32)
    assert {h.reference for h in handles} == {None}
    assert {c.method for c in transport.sent} == {"generate", "score"}


def test_asking_for_more_than_staleness_admits_is_an_error_and_dispatches_nothing(make_conductor):
    conductor, transport = make_conductor()
    with pytest.raises(LedgerError, match="33 samples asked for where staleness admits 32"):
        conductor.collect(33)
    assert (transport.sent, conductor.ledger.dispatched, conductor.prompts.next_draw_index) == ([], 0, 0)


def test_a_second_batch_at_the_same_weights_is_not_admitted(make_conductor):
    # Strictly on-policy: whether the first one was trained on or not.
    conductor, _ = make_conductor()
    handles = conductor.collect(32)
    with pytest.raises(LedgerError, match="1 samples asked for where staleness admits 0"):
        conductor.collect(1)
    conductor.account(report_of(1, handles))
    with pytest.raises(LedgerError, match="staleness admits 0"):
        conductor.collect(32)
    conductor.publish(weights_of(1))
    assert len(conductor.collect(32)) == 4


def test_weights_must_be_published_first(make_conductor):
    conductor, transport = make_conductor(published=False)
    with pytest.raises(RuntimeError, match="publish weights before collecting"):
        conductor.collect(32)
    with pytest.raises(RuntimeError, match="publish weights"):
        conductor.sample(conductor.prompts.take(1))
    assert transport.sent == []


@pytest.mark.parametrize(
    ("role", "member", "method"),
    [("rollout", "worker-1", "generate"), ("reward", "replica-0", "score"), ("reward", "replica-1", "reference")],
)
def test_a_member_that_falls_silent_is_named_with_role_and_phase_once_its_time_is_up(
    make_conductor, role, member, method
):
    conductor, transport = make_conductor(silent=[(member, method)])
    start = transport.clock.now
    with pytest.raises(
        PhaseTimeoutError, match=rf"{role} member {member} has not answered {method} for 5\d s"
    ) as caught:
        conductor.collect(32)
    assert "limit 50 s, rollout.request_timeout_s" in str(caught.value)
    assert "calls at 2 members" in str(caught.value)
    assert LIMIT_S < transport.clock.now - start <= LIMIT_S + 2, "noticed too early or too late"


def test_slow_members_that_answer_each_call_in_time_are_no_error(make_conductor, slow_transport):
    conductor, _ = make_conductor(workers=1, replicas=1, transport=slow_transport)
    started = conductor.clock.now
    assert len(conductor.collect(8)) == 1
    assert conductor.clock.now - started == 60.0 > LIMIT_S


@pytest.mark.parametrize(
    ("role", "member", "method"),
    [("rollout", "worker-0", "generate"), ("reward", "replica-0", "score"), ("reward", "replica-1", "reference")],
)
def test_a_member_that_fails_is_named_with_role_phase_and_cause(make_conductor, role, member, method):
    cause = ConnectionError("the process died")
    conductor, _ = make_conductor(failing={(member, method): cause})
    message = f"{role} member {member} failed in {method}: ConnectionError: the process died"
    with pytest.raises(MemberFailedError, match=message) as caught:
        conductor.collect(32)
    assert caught.value.__cause__ is cause


def test_an_error_raised_on_purpose_by_a_member_is_passed_on(make_conductor):
    conductor, _ = make_conductor(failing={("replica-0", "score"): NonFiniteError("score of draw 3 is nan")})
    with pytest.raises(NonFiniteError, match="draw 3"):
        conductor.collect(32)


def test_after_a_failure_the_unfinished_samples_are_still_accounted_for(make_conductor):
    # Nothing lost: they are in flight, neither trained nor forgotten.
    conductor, _ = make_conductor(failing={("worker-0", "generate"): OSError("gone")})
    with pytest.raises(MemberFailedError):
        conductor.collect(32)
    conductor.ledger.check()
    assert (conductor.ledger.dispatched, conductor.ledger.in_flight) == (32, 32)


def test_seconds_of_all_members_are_added_up_by_phase(make_conductor):
    conductor, _ = make_conductor()
    conductor.collect(32)
    taken = conductor.watch.take()
    assert {k: v for k, v in taken.items() if k != "collect"} == {"generate": 1.0, "score": 2.0, "reference": 0.5}
    assert taken["collect"] > 0


def test_metrics_tell_tokens_and_weights_of_each_worker(make_conductor):
    conductor, _ = make_conductor()
    conductor.publish(weights_of(3))
    conductor.collect(32)
    registry = conductor.metrics.registry
    tokens = [
        registry.get_sample_value("minichatgpt_tokens_generated_total", {"worker": f"worker-{i}"}) for i in (0, 1)
    ]
    assert sum(tokens) == 32
    for worker in ("worker-0", "worker-1"):
        assert registry.get_sample_value("minichatgpt_weights_step", {"worker": worker}) == 3
    count = {"role": "reward", "phase": "score"}
    assert registry.get_sample_value("minichatgpt_phase_seconds_count", count) == 4
