"""The conductor over members that answer in an order of their own, late, never, or with errors."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import (
    ConfigError,
    LearnerLostError,
    LedgerError,
    MemberFailedError,
    NonFiniteError,
    TooManyDropsError,
)
from common.ports import Reply
from common.records import Identity, UpdateReport, WeightsHandle


def weights_of(step, lineage=0):
    return WeightsHandle(Identity(lineage, step), f"buffer {step}", step, ())


def report_of(step, handles, **fields):
    trained = tuple((draw, k) for handle in handles for draw in handle.draw_indices
                    for k in range(handle.samples_per_prompt))  # fmt: skip
    return UpdateReport(step, Identity(0, step), trained, {}, {}, **fields)


def draws_of(handles):
    return [draw for handle in handles for draw in handle.draw_indices]


# --- chunks


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32), workers=st.integers(1, 4), replicas=st.integers(1, 3))
def test_handles_come_in_chunk_order_with_their_own_payloads_whoever_answers_first(make_bench, seed, workers, replicas):
    bench = make_bench(seed=seed, workers=workers, replicas=replicas)
    handles = bench.collect(32)
    assert [h.chunk_index for h in handles] == [0, 1, 2, 3]
    assert draws_of(handles) == list(range(32))
    for handle in handles:
        assert tuple(r.draw_index for r in handle.rollouts.rollouts) == handle.draw_indices
        assert tuple(j.draw_index for j in handle.judgements.judgements) == handle.draw_indices
        assert tuple(-int(row[0]) for row in handle.reference.logprobs) == handle.draw_indices
        assert handle.rollout_stats.seconds == {"generate": 0.25}
        assert handle.judge_stats.seconds == {"score": 0.5}
    assert len([c for c in bench.sent if c.method in ("generate", "score", "reference")]) == 4 * 3


def test_what_is_asked_for_does_not_depend_on_workers_or_on_the_order_of_answers(make_bench):
    # Decision 7: chunks are fixed; 1, 2 and 4 workers get the same requests between them.
    asked = []
    for seed, workers in enumerate((1, 2, 4)):
        bench = make_bench(seed=seed, workers=workers)
        bench.collect(32)
        asked.append(
            {
                r.chunk_index: (r.fill, [(p.draw_index, tuple(p.token_ids), p.max_new_tokens) for p in r.prompts])
                for r in bench.requests()
            }
        )
    assert asked[0] == asked[1] == asked[2]


def test_work_is_spread_over_all_members(make_bench):
    bench = make_bench(workers=2, replicas=2)
    bench.publish(weights_of(0))
    while len(bench.conductor.rollout.roster.active()) < 2 or len(bench.conductor.reward.roster.active()) < 2:
        bench.speak()
    bench.collect(32)
    work = [c for c in bench.sent if c.method in ("generate", "score", "reference")]
    assert {c.member.slot for c in work} == {"worker-0", "worker-1", "replica-0", "replica-1"}


TWENTY = ("ppo.trajectories_per_update=20", "ppo.minibatch_sequences=10", "ppo.microbatch_sequences=5")


def test_a_short_last_chunk_is_filled_to_its_size_and_yields_only_its_own(make_bench):
    bench = make_bench(*TWENTY)
    handles = bench.collect(20)
    requests = sorted(bench.requests(), key=lambda r: r.chunk_index)
    assert [(len(r.prompts), r.fill) for r in requests] == [(8, 0), (8, 0), (4, 4)]
    assert [len(h.draw_indices) for h in handles] == [8, 8, 4]
    assert sum(h.rollout_stats.samples for h in handles) == 20


def test_requests_carry_the_published_weights_the_run_seed_and_the_temperature(make_bench):
    bench = make_bench("seed=77", "ppo.temperature=0.7")
    bench.collect(32)
    for request in bench.requests():
        assert request.weights == weights_of(0)
        assert (request.run_seed, request.temperature, request.attempt) == (77, 0.7, 0)
        assert (request.samples_per_prompt, request.top_p) == (1, 1.0)


def test_each_update_goes_on_in_the_stream_with_the_new_weights(make_bench):
    bench = make_bench()
    for step in range(3):
        bench.publish(weights_of(step))
        before = len(bench.requests())
        handles = bench.collect(32)
        assert draws_of(handles) == list(range(32 * step, 32 * step + 32))
        assert [h.chunk_index for h in handles] == list(range(4 * step, 4 * step + 4))
        assert {r.weights.identity.step for r in bench.requests()[before:]} == {step}
        bench.conductor.account(report_of(step + 1, handles))


def test_without_a_reference_in_the_service_none_is_asked_for(make_bench):
    bench = make_bench("ppo.reference=shared_trunk", "ppo.trainable_layers=1")
    handles = bench.collect(32)
    assert {h.reference for h in handles} == {None}
    assert "reference" not in {c.method for c in bench.sent}


def test_outside_of_training_the_reference_is_asked_whoever_has_it_in_training(make_bench):
    bench = make_bench("ppo.reference=shared_trunk", "ppo.trainable_layers=1")
    handles = bench.sample(bench.conductor.prompts.take(4))
    assert all(handle.reference is not None for handle in handles)
    handles = bench.collect(32)
    assert {handle.reference for handle in handles} == {None}, "and training goes on as before"
    assert [c.method for c in bench.sent].count("evaluate") == 1


def test_samples_outside_of_training_have_a_ledger_of_their_own_and_move_no_stream(make_bench):
    bench = make_bench(unscored={3})
    prompts = bench.conductor.prompts.take(12)
    cursor = bench.conductor.prompts.next_draw_index
    handles = bench.sample(prompts)
    assert {call.method for call in bench.sent} >= {"evaluate", "reference"}
    assert "score" not in {call.method for call in bench.sent}
    assert draws_of(handles) == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11], "what has no score is missing, not replaced"
    assert bench.conductor.ledger.dispatched == 0
    assert bench.conductor.prompts.next_draw_index == cursor


# --- admission


def test_asking_for_more_than_staleness_admits_is_an_error_and_dispatches_nothing(make_bench):
    bench = make_bench()
    with pytest.raises(LedgerError, match="33 samples asked for where staleness admits 32"):
        bench.collect(33)
    assert bench.requests() == []
    assert (bench.conductor.ledger.dispatched, bench.conductor.prompts.next_draw_index) == (0, 0)


def test_a_second_batch_at_the_same_weights_is_not_admitted(make_bench):
    # Strictly on-policy: whether the first one was trained on or not.
    bench = make_bench()
    handles = bench.collect(32)
    with pytest.raises(LedgerError, match="1 samples asked for where staleness admits 0"):
        bench.collect(1)
    bench.conductor.account(report_of(1, handles))
    with pytest.raises(LedgerError, match="staleness admits 0"):
        bench.collect(32)
    bench.publish(weights_of(1))
    assert len(bench.collect(32)) == 4


def test_weights_must_be_published_first(make_bench):
    bench = make_bench(published=False)
    with pytest.raises(RuntimeError, match="publish weights before collecting"):
        bench.collect(32)
    with pytest.raises(RuntimeError, match="publish weights"):
        bench.sample(bench.conductor.prompts.take(1))
    assert bench.requests() == []


# --- the ledger


def test_the_ledger_follows_samples_from_dispatch_to_training(make_bench):
    # Traps 26 and 32: counted where they are, and asserted at every step.
    bench = make_bench()
    handles = bench.collect(32)
    ledger = bench.conductor.ledger
    assert (ledger.dispatched, ledger.buffered, ledger.trained) == (32, 32, 0)
    bench.conductor.account(report_of(1, handles))
    assert (ledger.dispatched, ledger.buffered, ledger.trained) == (32, 0, 32)


def test_training_on_more_than_was_collected_is_found(make_bench):
    bench = make_bench()
    handles = bench.collect(32)
    with pytest.raises(LedgerError, match="trained on 40 samples, not on the 32"):
        bench.conductor.account(report_of(1, [*handles, handles[0]]))


def test_an_update_without_a_finite_step_drops_its_samples_and_the_next_ones_are_admitted(make_bench):
    bench = make_bench()
    bench.collect(32)
    bench.conductor.account(report_of(0, [], is_finite=False))
    assert bench.conductor.ledger.dropped == {"nonfinite_update": 32}
    assert draws_of(bench.collect(32)) == list(range(32, 64)), "other samples, at the same weights"


def test_too_many_updates_in_a_row_without_a_finite_step_are_an_error(make_bench):
    bench = make_bench("ppo.max_nonfinite_updates=2")
    conductor = bench.conductor
    for finite in (False, True, False):
        bench.publish(weights_of(1 if conductor.ledger.trained else 0))
        handles = bench.collect(32)
        conductor.account(report_of(1, handles) if finite else report_of(0, [], is_finite=False))
    bench.collect(32)
    conductor.account(report_of(0, [], is_finite=False))
    with pytest.raises(NonFiniteError, match="2 updates in a row"):
        bench.collect(32)


def test_going_back_to_a_checkpoint_counts_all_later_work_as_rolled_back_and_repeats_its_draws(make_bench):
    bench = make_bench()
    conductor = bench.conductor
    conductor.account(report_of(1, bench.collect(32)))
    saved = conductor.state_dict()
    bench.publish(weights_of(1))
    conductor.account(report_of(2, bench.collect(32)))
    bench.publish(weights_of(2))
    bench.take(conductor.begin(32, bench.now))  # and in the midst of it the learner dies
    bench.take(conductor.roll_back(saved, bench.now))
    ledger = conductor.ledger
    assert (ledger.dispatched, ledger.trained, ledger.rolled_back, ledger.in_flight) == (96, 32, 64, 0)
    bench.publish(weights_of(1, lineage=1))
    handles = bench.collect(32)
    assert draws_of(handles) == list(range(32, 64))
    assert {r.identity.lineage for h in handles for r in h.rollouts.rollouts} == {1}
    assert ledger.duplicates == 0, "answers of a dead lineage are no duplicates"


def test_a_checkpoint_in_the_midst_of_collecting_keeps_the_state_after_the_last_update(make_bench):
    bench = make_bench()
    conductor = bench.conductor
    conductor.account(report_of(1, bench.collect(32)))
    before = conductor.state_dict()
    bench.publish(weights_of(1))
    bench.take(conductor.begin(32, bench.now))
    assert conductor.state_dict() == before
    assert before["next_draw_index"] == 32


# --- what has no score


def test_a_sample_without_a_score_is_dropped_and_replaced_by_the_next_draw(make_bench):
    bench = make_bench(unscored={3, 17})
    handles = bench.collect(32)
    assert draws_of(handles) == [d for d in range(34) if d not in (3, 17)]
    assert bench.conductor.ledger.dropped == {"reward_nonfinite": 2}
    last = bench.requests()[-1]
    assert ([p.draw_index for p in last.prompts], last.fill) == ([32, 33], 6), "one chunk for both, in a second round"


def test_a_replacement_that_has_no_score_either_is_replaced_again(make_bench):
    bench = make_bench(unscored={3, 32, 33})
    assert draws_of(bench.collect(32)) == [d for d in range(35) if d not in (3, 32, 33)]


def test_replies_in_any_order_ask_for_the_same_replacements(make_bench):
    asked = []
    for seed in range(6):
        bench = make_bench(seed=seed, unscored={1, 9, 30, 33})
        bench.collect(32)
        asked.append({r.chunk_index: [p.draw_index for p in r.prompts] for r in bench.requests()})
    assert all(one == asked[0] for one in asked)


def test_a_reward_service_that_scores_nothing_is_an_error_and_no_endless_loop(make_bench):
    bench = make_bench(unscored=set(range(1000)))
    with pytest.raises(TooManyDropsError, match=r"40 samples .*reward_nonfinite.*limit 32.*scored nan"):
        bench.collect(32)
    bench.conductor.ledger.check()


AHEAD = ("ppo.max_staleness=1", "ppo.updates=9")


def test_where_generation_runs_ahead_a_reward_service_that_scores_nothing_is_an_error_too(make_bench):
    bench = make_bench(*AHEAD, unscored=set(range(1000)))
    with pytest.raises(TooManyDropsError, match=r"40 samples .*reward_nonfinite.*limit 32.*scored nan"):
        bench.collect(32)
    bench.conductor.ledger.check()


def test_where_generation_runs_ahead_the_limit_is_that_of_one_update(make_bench):
    bench = make_bench(*AHEAD, "ppo.max_drops_per_update=8", unscored={d for d in range(200) if d % 8 == 0})
    for step in range(1, 6):
        handles = bench.collect(32)
        assert sum(handle.num_samples for handle in handles) == 32
        bench.conductor.account(report_of(step, handles))
        bench.publish(weights_of(step))
    assert bench.conductor.ledger.dropped["reward_nonfinite"] > 2 * 8
    bench.conductor.ledger.check()


def test_where_generation_runs_ahead_drops_above_the_limit_of_an_update_end_the_run(make_bench):
    bench = make_bench(*AHEAD, "ppo.max_drops_per_update=2", unscored={1, 2, 3})
    with pytest.raises(TooManyDropsError, match=r"3 samples .*limit 2"):
        bench.collect(32)


def test_a_chunk_that_no_replica_can_judge_is_dropped_whole_and_its_other_call_forgotten(make_bench):
    def fail(call):
        of_second_chunk = call.method == "score" and call.argument.rollouts[0].draw_index == 8
        return ValueError("boom") if of_second_chunk else None

    bench = make_bench(failing=fail)
    assert draws_of(bench.collect(32)) == [d for d in range(40) if not 8 <= d < 16]
    assert bench.conductor.ledger.dropped == {"reward_error": 8}
    assert not bench.conductor.reward.tasks
    assert len({c.member.slot for c in bench.sent if fail(c)}) == 2, "it was tried on the other replica too"


# --- groups: several samples of one prompt


FOUR = ("ppo.samples_per_prompt=4",)


def samples_of(handles):
    return [
        (r.draw_index, r.sample_index) for h in handles for r in h.rollouts.rollouts if r.draw_index in h.draw_indices
    ]


def test_a_batch_counts_samples_and_takes_a_prompt_for_each_group(make_bench):
    bench = make_bench(*FOUR)
    handles = bench.collect(32)
    assert samples_of(handles) == [(draw, k) for draw in range(8) for k in range(4)]
    assert [(len(r.prompts), r.num_samples, r.fill) for r in bench.requests()] == [(2, 8, 0)] * 4
    assert [h.num_samples for h in handles] == [8] * 4
    ledger = bench.conductor.ledger
    assert (ledger.dispatched, ledger.buffered, bench.conductor.prompts.next_draw_index) == (32, 32, 8)
    bench.conductor.account(report_of(1, handles))
    assert ledger.trained == 32


def test_a_group_with_one_sample_without_a_score_is_dropped_whole_and_replaced_by_the_next_draw(make_bench):
    bench = make_bench(*FOUR, unscored={(3, 2), (6, 0), (6, 1)})
    handles = bench.collect(32)
    assert samples_of(handles) == [(draw, k) for draw in (0, 1, 2, 4, 5, 7, 8, 9) for k in range(4)]
    assert bench.conductor.ledger.dropped == {"reward_nonfinite": 3, "group_incomplete": 5}
    last = bench.requests()[-1]
    assert ([p.draw_index for p in last.prompts], last.fill) == ([8, 9], 0), "both in one chunk, in a second round"
    assert bench.conductor.ledger.dispatched == 40


def test_a_short_last_chunk_holds_whole_groups_and_is_filled_by_samples(make_bench):
    bench = make_bench(*TWENTY, *FOUR)
    handles = bench.collect(20)
    requests = sorted(bench.requests(), key=lambda r: r.chunk_index)
    assert [(len(r.prompts), r.fill) for r in requests] == [(2, 0), (2, 0), (1, 4)]
    assert sum(h.num_samples for h in handles) == 20


def test_lost_payloads_of_groups_are_made_once_more_as_groups(make_bench):
    bench = make_bench(*FOUR)
    handles = bench.collect(32)
    bench.take(bench.conductor.begin_again(handles, [1], bench.now))
    ledger = bench.conductor.ledger
    assert (ledger.buffered, ledger.in_flight) == (24, 8)
    again = bench.finish()
    assert samples_of(again) == samples_of(handles)
    bench.conductor.account(report_of(1, again))
    assert (ledger.dispatched, ledger.trained) == (32, 32)


def test_a_chunk_of_groups_that_no_replica_can_judge_counts_all_its_samples(make_bench):
    def fail(call):
        return ValueError("boom") if call.method == "score" and call.argument.rollouts[0].draw_index == 2 else None

    bench = make_bench(*FOUR, failing=fail)
    assert draws_of(bench.collect(32)) == [0, 1, *range(4, 10)]
    assert bench.conductor.ledger.dropped == {"reward_error": 8}


def test_evaluation_takes_one_sample_of_each_prompt_however_many_training_takes(make_bench):
    bench = make_bench(*FOUR)
    prompts = bench.conductor.prompts.take(12)
    bench.take(bench.conductor.begin_given(prompts, bench.now, top_p=0.9))
    assert samples_of(bench.finish()) == [(draw, 0) for draw in range(12)]
    assert [(len(r.prompts), r.samples_per_prompt, r.top_p) for r in bench.requests()] == [(8, 1, 0.9), (4, 1, 0.9)]


def test_a_part_of_a_group_cannot_be_asked_for(make_bench):
    bench = make_bench(*FOUR)
    with pytest.raises(LedgerError, match="30 samples asked for, which are no whole groups of 4"):
        bench.collect(30)
    assert bench.conductor.ledger.dispatched == 0


# --- members that fail


@pytest.mark.parametrize(
    ("member", "method"), [("worker-1", "generate"), ("replica-0", "score"), ("replica-1", "reference")]
)
def test_a_member_that_falls_silent_is_replaced_and_nothing_is_lost(make_bench, member, method):
    bench = make_bench("rollout.request_timeout_s=50", "reward_service.request_timeout_s=50", silent=[(member, method)])
    handles = bench.collect(32)
    assert draws_of(handles) == list(range(32))
    assert bench.conductor.ledger.duplicates == 0
    lost = [n for n in bench.notes() if "was lost" in n]
    if lost:  # unless the other one did all the work
        assert f"{member} was lost in {method}: no answer for 51 s (limit 50 s, request_timeout_s)" in lost[0]


def test_a_generation_that_fails_everywhere_ends_the_run_with_its_draws_and_cause(make_bench):
    cause = ValueError("CUDA error")
    bench = make_bench(failing={("worker-0", "generate"): cause, ("worker-1", "generate"): cause})
    with pytest.raises(MemberFailedError, match=r"draws \d+ … \d+ could not be generated in 3 attempts .*CUDA error"):
        bench.collect(32)


def test_a_wrong_configuration_is_told_as_it_is(make_bench):
    error = ConfigError("this replica holds no reference")
    bench = make_bench(failing={("replica-0", "reference"): error, ("replica-1", "reference"): error})
    with pytest.raises(ConfigError, match="no reference"):
        bench.collect(32)


def test_rollouts_that_went_with_their_node_are_generated_again_with_the_same_seeds(make_bench):
    bench = make_bench()
    bench.take(bench.conductor.begin(32, bench.now))
    while not (calls := [c for c in bench.open.values() if c.method == "score"]):
        bench.speak()
    lost = calls[0]
    draws = [r.draw_index for r in lost.argument.rollouts]
    del bench.open[lost.call_id]
    bench.take(bench.conductor.on_reply(Reply(lost.call_id, error=OSError("lost"), cause="lost"), bench.now))
    handles = bench.finish()
    assert draws_of(handles) == list(range(32))
    again = [r for r in bench.requests() if r.prompts[0].draw_index == draws[0]]
    assert len(again) == 2
    assert again[0].prompts == again[1].prompts
    assert bench.conductor.ledger.buffered == 32


def test_payloads_that_are_lost_before_the_update_are_made_once_more_and_the_others_kept(make_bench):
    bench = make_bench()
    handles = bench.collect(32)
    bench.take(bench.conductor.begin_again(handles, [1, 3], bench.now))
    ledger = bench.conductor.ledger
    assert (ledger.buffered, ledger.in_flight) == (16, 16)
    again = bench.finish()
    assert [h.chunk_index for h in again] == [0, 1, 2, 3]
    assert draws_of(again) == list(range(32))
    assert (again[0], again[2]) == (handles[0], handles[2])
    assert again[1] is not handles[1]
    bench.conductor.account(report_of(1, again))
    assert (ledger.dispatched, ledger.trained) == (32, 32)


def test_payloads_that_never_reach_the_learner_end_the_run_instead_of_going_round_for_ever(make_bench):
    bench = make_bench()
    handles = bench.collect(32)
    for _ in range(5):
        bench.take(bench.conductor.begin_again(handles, [0], bench.now))
        handles = bench.finish()
    with pytest.raises(MemberFailedError, match="missed payloads 6 times in a row"):
        bench.conductor.begin_again(handles, [0], bench.now)
    assert len([note for note in bench.notes() if "payloads of 1 chunks are lost" in note]) == 5


def test_lost_weights_are_a_lost_learner_and_going_back_mends_it(make_bench):
    bench = make_bench()
    conductor = bench.conductor
    saved = conductor.state_dict()
    bench.take(conductor.begin(32, bench.now))
    while not (calls := [c for c in bench.open.values() if c.method == "generate"]):
        bench.speak()
    del bench.open[calls[0].call_id]
    bench.take(conductor.on_reply(Reply(calls[0].call_id, error=OSError("gone"), cause="lost"), bench.now))
    with pytest.raises(LearnerLostError, match="published weights are lost"):
        bench.finish()
    bench.take(conductor.roll_back(saved, bench.now))
    bench.publish(weights_of(0, lineage=1))
    assert draws_of(bench.collect(32)) == list(range(32))


def test_after_a_failure_the_unfinished_samples_are_still_accounted_for(make_bench):
    # Nothing lost: they are in flight, neither trained nor forgotten.
    bench = make_bench(failing={(f"worker-{i}", "generate"): OSError("gone") for i in (0, 1)})
    with pytest.raises(MemberFailedError):
        bench.collect(32)
    bench.conductor.ledger.check()
    assert (bench.conductor.ledger.dispatched, bench.conductor.ledger.in_flight) == (32, 32)
