"""What the policy decides: on a plant that is the model it assumes, with and without noise, and on single updates."""

import itertools
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.autoscaler.decision import State
from deploy.autoscaler.forecast import Forecast
from deploy.autoscaler.policy import Policy

LOADS = st.tuples(st.floats(0.01, 20), st.floats(0.1, 20), st.floats(0, 20), st.floats(0, 5))
COUNTS = st.integers(1, 12)


def changes(decisions):
    return [decision for decision in decisions if decision.direction != "hold"]


def settled(policy, seen):
    """A state in which an observation counts."""
    return State(target=seen.target, active=seen.active)


# --- properties


@given(numbers=LOADS, start=COUNTS, chunks=COUNTS, fewest=COUNTS, span=st.integers(0, 8), step=st.integers(1, 5),
       noise=st.sampled_from([0.0, 0.3]), seed=st.integers(0, 99))  # fmt: skip
def test_targets_it_chooses_are_within_the_bounds_and_never_more_than_there_are_chunks(
    load, plant, configured, numbers, start, chunks, fewest, span, step, noise, seed
):
    config = configured(
        min_workers=fewest, max_workers=fewest + span, max_step_workers=step, confirm_updates=1, down_cooldown_s=5
    )
    run = plant(config, chunks, start, noise=noise, seed=seed)
    run.run(load(*numbers), 30)
    before = start
    for seen, decision in run.history:
        if decision.direction != "hold":
            assert decision.target <= max(fewest, min(fewest + span, chunks)) or decision.target < before
            assert decision.target >= fewest or decision.target > before
            assert 0 < abs(decision.target - before) <= step
            assert (decision.target > before) == (decision.direction == "up")
        assert decision.target == before or decision.direction != "hold"
        assert decision.reason
        assert seen.target == before
        before = decision.target


@given(numbers=LOADS, start=COUNTS, chunks=COUNTS, noise=st.floats(0, 1), seed=st.integers(0, 99),
       up_s=st.floats(0, 300), down_s=st.floats(0, 300))  # fmt: skip
def test_no_change_comes_within_the_cool_down_of_the_one_before(
    load, plant, configured, numbers, start, chunks, noise, seed, up_s, down_s
):
    config = configured(confirm_updates=1, up_cooldown_s=up_s, down_cooldown_s=down_s, max_step_workers=1)
    run = plant(config, chunks, start, noise=noise, seed=seed)
    run.run(load(*numbers), 60)
    made = [(seen.now_s, decision.direction) for seen, decision in run.history if decision.direction != "hold"]
    for (earlier_s, _), (later_s, direction) in itertools.pairwise(made):
        assert later_s - earlier_s >= (up_s if direction == "up" else down_s) - 1e-6


@given(numbers=LOADS, start=st.integers(1, 20), chunks=st.integers(1, 20), step=st.integers(1, 20))
def test_on_a_steady_run_it_settles_and_never_turns_back(load, plant, configured, numbers, start, chunks, step):
    run = plant(configured(max_workers=16, max_step_workers=step), chunks, start)
    made = changes(run.run(load(*numbers), 300))
    assert len({decision.direction for decision in made}) <= 1, "never up and down"
    assert not changes(run.run(load(*numbers), 50))


@given(numbers=LOADS, workers=COUNTS, chunks=COUNTS, more=st.floats(0, 1))
def test_the_longer_the_learner_waits_the_more_workers_it_wants(load, configured, numbers, workers, chunks, more):
    policy = Policy(configured(confirm_updates=1, max_workers=12, max_step_workers=12), chunks)
    seen = load(*numbers).seen(workers, chunks)
    waits = seen.learner_wait_fraction
    longer = replace(seen, learner_wait_fraction=waits + more * (1 - waits))
    (_, less), (_, greater) = (policy.observe(settled(policy, one), one) for one in (seen, longer))
    assert greater.target >= less.target or greater.cause == "replicas"


@given(numbers=LOADS, workers=COUNTS, chunks=COUNTS)
def test_what_it_foresees_is_what_comes(load, numbers, workers, chunks):
    plain = load(*numbers)
    forecast = Forecast.of(plain.seen(workers, chunks), chunks)
    assert forecast.chunk_s == pytest.approx(plain.chunk_s)
    for other in range(1, 13):
        assert forecast.collect_s(other) == pytest.approx(plain.collect_s(other, chunks))


# --- on the plant


@pytest.mark.parametrize(("start", "found"), [(1, 3), (2, 3), (12, 4)])
@pytest.mark.parametrize("seed", range(5))
def test_with_noise_it_finds_a_good_number_from_both_sides_and_stays(load, plant, configured, start, found, seed):
    """Twelve chunks of 1 s beside 5 s of learning: with 2, 3 and 4 workers the learner waits 55, 44 and 38 %."""
    run = plant(configured(max_workers=12), 12, start, noise=0.05, seed=seed)
    made = changes(run.run(load(chunk_s=1.0, other_s=5.0), 60))
    assert run.target == found
    assert len(made) <= 3
    assert not changes(run.run(load(chunk_s=1.0, other_s=5.0), 60))


def test_it_follows_the_length_of_responses(load, plant, configured):
    run = plant(configured(), 16, 2, noise=0.05)
    run.run(load(chunk_s=0.5, other_s=4.5), 40)
    assert run.target == 2, "16 rounds of 0.5 s would be 64 %"
    run.run(load(chunk_s=2.0, other_s=4.5), 40)
    assert run.target == 8, "two rounds of 2 s beside 4.5 s"
    run.run(load(chunk_s=0.25, other_s=4.5), 60)
    assert run.target == 2, "eight rounds of 0.25 s: 31 %; one worker: 47 %"


def test_where_no_number_is_good_it_takes_the_fastest_that_still_saves_something(load, plant, configured):
    run = plant(configured(max_workers=64, max_step_workers=64), 64, 1)
    run.run(load(chunk_s=0.1, other_s=0.5, rest_s=10.0), 40)
    assert run.target == 11, "with 64 workers 10.6 s; six rounds, 11.1 s, are within 5 % of it"
    run = plant(configured(max_workers=64, max_step_workers=64), 64, 64)
    run.run(load(chunk_s=0.1, other_s=0.5, rest_s=10.0), 40)
    assert run.target == 22, "three rounds, 10.8 s, are within half of that"


def test_workers_without_cpus_of_their_own_are_taken_back_and_tried_again_later(load, plant, configured):
    """Two CPUs: three and more workers generate as fast as two."""
    shared = load(chunk_s=1.0, other_s=0.5, cpus=2)
    run = plant(configured(max_step_workers=2, retry_after_s=300.0), 8, 1, noise=0.03)
    made = changes(run.run(shared, 40))
    assert [(d.target, d.cause) for d in made] == [(3, "wait"), (5, "wait"), (3, "vain")]
    assert "where" in made[-1].reason
    assert run.history[-1][1].cause == "limit"
    assert run.now_s < 300
    tried_again = changes(run.run(shared, 100))
    assert [(d.target, d.cause) for d in tried_again[:2]] == [(5, "wait"), (3, "vain")]
    assert len(tried_again) <= 2 * (run.now_s / 300 + 1)


def test_a_single_odd_update_moves_nothing(load, plant, configured):
    run = plant(configured(), 8, 4)
    run.run(load(chunk_s=1.0, other_s=2.5), 10)
    for odd in (load(chunk_s=9.0, other_s=2.5), load(chunk_s=0.01, other_s=2.5)):
        run.run(odd, 2)
        run.run(load(chunk_s=1.0, other_s=2.5), 5)
    assert not changes([decision for _, decision in run.history])


# --- single observations


@pytest.fixture
def waiting(load):
    """Workers that the learner waits for."""

    def make(workers=2, **facts):
        return load(chunk_s=2.0, other_s=1.0).seen(workers, 8, **facts)

    return make


@pytest.fixture
def policy(configured):
    return Policy(configured(confirm_updates=1), 8)


def decide(policy, seen, **state):
    return policy.observe(State(**{"target": seen.target, "active": seen.active, **state}), seen)


def test_workers_on_their_way_count(policy, waiting):
    after, decision = decide(policy, waiting(2, starting=2, target=4))
    assert (decision.target, decision.cause) == (4, "starting")
    assert "2 of 4 workers take work, 2 are on their way" in decision.reason
    after, decision = policy.observe(after, waiting(4, target=4))
    assert (decision.target, decision.cause) == (4, "unsteady"), "half of that update was without them"
    _, decision = policy.observe(after, waiting(4, target=4))
    assert (decision.target, decision.cause) == (8, "wait")


def test_workers_that_are_given_up_are_no_reason_for_more_and_do_not_keep_others(policy, waiting, load):
    _, decision = decide(policy, waiting(2, target=4), changed_s=0.0)
    assert (decision.target, decision.cause) == (4, "given_up")
    _, decision = decide(policy, load(chunk_s=0.01, other_s=5.0).seen(3, 8, target=4), changed_s=0.0)
    assert (decision.target, decision.cause) == (1, "spare")


def test_workers_that_are_given_up_are_asked_for_again_after_a_while(configured, waiting):
    policy = Policy(configured(confirm_updates=1, retry_after_s=600), 8)
    after, decision = decide(policy, waiting(2, target=4, now_s=599.0), changed_s=0.0)
    assert (decision.target, decision.cause) == (4, "given_up")
    assert decision.reason.endswith("they are asked for again in 1 s")
    _, decision = policy.observe(after, waiting(2, target=4, now_s=600.0))
    assert (decision.direction, decision.cause) == ("up", "wait")


def test_a_persons_order_stands_and_starts_the_cool_down(configured, waiting):
    policy = Policy(configured(confirm_updates=1, up_cooldown_s=60), 8)
    after, decision = decide(policy, waiting(1, now_s=100.0), target=6, active=6)
    assert (decision.target, decision.cause) == (1, "asked")
    after, decision = policy.observe(after, waiting(1, now_s=159.0))
    assert (decision.target, decision.cause) == (1, "cooldown")
    after, decision = policy.observe(after, waiting(1, now_s=160.0))
    assert (decision.target, decision.direction) == (5, "up")
    assert decision.reason.endswith("a step is of 4 at most")


def test_a_persons_number_beyond_the_bounds_is_kept_while_it_is_of_use(configured, load):
    policy = Policy(configured(confirm_updates=1, max_workers=4), 16)
    seen = load(chunk_s=2.0, other_s=1.0).seen(8, 16)
    assert decide(policy, seen)[1].target == 8
    idle = load(chunk_s=0.01, other_s=5.0).seen(8, 16)
    assert decide(policy, idle)[1].target == 4, "four at most are taken away at once"


def test_requests_that_wait_for_replicas_ask_for_replicas(policy, waiting):
    _, decision = decide(policy, waiting(2, queue_s=2.5))
    assert (decision.target, decision.cause) == (2, "replicas")
    assert "add reward replicas, not workers" in decision.reason
    assert decide(policy, waiting(2, queue_s=1.5))[1].direction == "up", "shorter than a worker needs for a chunk"


def test_replicas_that_are_slower_than_the_workers_ask_for_replicas(policy, load):
    _, decision = decide(policy, load(chunk_s=2.0, other_s=1.0, judge_s=9.0).seen(2, 8))
    assert (decision.target, decision.cause) == (2, "replicas")


def test_where_no_more_may_be_it_says_why(configured, load):
    seen = load(chunk_s=2.0, other_s=1.0)
    _, decision = decide(Policy(configured(max_workers=20), 8), seen.seen(8, 8))
    assert decision.cause == "limit"
    assert decision.reason.endswith("more workers than 8 may not be: an update has 8 chunks")
    _, decision = decide(Policy(configured(max_workers=4), 8), seen.seen(4, 8))
    assert decision.cause == "limit"
    assert decision.reason.endswith("max_workers=4")


def test_workers_that_have_nothing_to_do_go_although_the_learner_waits(policy, load):
    """Five workers and eight chunks: two rounds, as with four."""
    _, decision = decide(Policy(policy.config.model_copy(update={"max_workers": 5}), 8),
                         load(chunk_s=2.0, other_s=1.0).seen(5, 8))  # fmt: skip
    assert (decision.target, decision.direction) == (4, "down")


def test_answers_to_held_out_prompts_are_no_work_for_the_learner(load):
    plain = load(chunk_s=1.0, other_s=2.0).seen(2, 8)
    evaluated_s = plain.update_s + 4.0  # as long as collecting, and the same work once more
    mixed = replace(
        plain,
        update_s=evaluated_s,
        learner_wait_fraction=4.0 / evaluated_s,
        evaluate_fraction=4.0 / evaluated_s,
        worker_busy_fraction=8.0 / evaluated_s,
    )
    forecast = Forecast.of(mixed, 8)
    assert forecast.chunk_s == pytest.approx(1.0)
    assert forecast.update_s(4) == pytest.approx(evaluated_s - 2.0)


def test_the_least_of_the_confirmed_numbers_is_taken(configured, load):
    policy = Policy(configured(confirm_updates=3, max_step_workers=8), 8)
    state = State(target=1, active=1)
    for other_s in (1.0, 6.0, 1.0):
        state, decision = policy.observe(state, load(chunk_s=2.0, other_s=other_s).seen(1, 8))
    assert (decision.direction, decision.target) == ("up", 3), "three rounds of 2 s beside 6 s"
