"""An update ends at the minibatch on which the policy has gone too far, and nothing of that minibatch is learnt."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.early_stop import went_too_far
from learner.packing import minibatches
from learner.tally import Tally, repetition

NUM_STEPS = 12
SETTINGS = {"optimizer": {"type": "adamw", "lr": 1e-2}, "epochs": 3, "minibatch_sequences": 4}


@pytest.fixture
def update(tiny_policy, sample, make_learner, weights_of):
    """One update with fast steps: its report, its weights, and the policy's before each step."""
    policy = tiny_policy()
    trajectories = sample(policy)

    def run(**changed):
        learner, before_each = make_learner(policy, **SETTINGS, **changed), []
        learner.optimizers[0].optimizer.register_step_pre_hook(lambda *_: before_each.append(weights_of(learner)))
        return learner.update(trajectories), weights_of(learner), before_each, learner

    return run, trajectories


@torch.no_grad()
def kl_of(learner, weights, trajectories):
    """KL(sampled || policy with these weights) per token, by k3, in a loop over the tokens that the engine sampled."""
    for name, parameter in learner.plain.named_parameters():
        parameter.copy_(weights[name])
    terms = []
    for t in trajectories:
        prompt, response = t.prompt.token_ids, t.rollout.response_ids
        logits = learner.plain.policy(torch.from_numpy(np.concatenate([prompt, response])).long()[None]).logits[0]
        for position, token in enumerate(response.tolist(), start=len(prompt)):
            log_ratio = float(logits[position - 1].log_softmax(-1)[token]) - float(
                t.rollout.logprobs[position - len(prompt)]
            )
            terms.append(math.exp(log_ratio) - 1 - log_ratio)
    return sum(terms) / len(terms)


def test_the_update_ends_at_the_first_minibatch_whose_kl_is_above_the_limit(update, changed):
    run, trajectories = update
    report, _, before_each, learner = run()
    assert (report.metrics["early_stopped"], report.metrics["optimizer_steps"]) == (0, NUM_STEPS)
    cuts = minibatches(16, 4, epochs=3, run_seed=learner.run_seed, step=0)
    kls = [kl_of(learner, weights, [trajectories[i] for i in index])
           for weights, index in zip(before_each, cuts, strict=True)]  # fmt: skip
    assert kls[0] < 1e-6
    assert max(kls) > 0.05, "the steps are large enough to show anything"
    heights = [n for n in range(1, NUM_STEPS) if kls[n] > 1.02 * max(kls[:n])]
    assert len(heights) > 2
    for at in heights:
        limit = (kls[at] + max(kls[:at])) / 2
        stopped, weights, _, _ = run(early_stop_kl=limit)
        assert (stopped.metrics["early_stopped"], stopped.metrics["optimizer_steps"]) == (1, at)
        assert changed(weights, before_each[at]) == [], "no step was taken after it"
        assert stopped.is_finite
        assert stopped.step == 1


def test_without_a_limit_in_reach_all_is_as_if_there_were_none(update, changed):
    run, _ = update
    off, weights, _, _ = run()
    unreached, same, _, _ = run(early_stop_kl=math.inf)
    assert changed(weights, same) == []
    assert unreached.metrics == off.metrics


def test_the_first_minibatch_is_always_trained(update):
    run, _ = update
    report, _, before_each, _ = run(early_stop_kl=1e-30)
    assert report.metrics["optimizer_steps"] == len(before_each) == 1
    assert report.is_finite


def test_the_gradient_of_the_minibatch_that_was_left_out_is_forgotten(update):
    """Else it would be added to that of the next update."""
    run, _ = update
    _, _, _, learner = run(early_stop_kl=1e-30)
    assert all(p.grad is None for p in learner.plain.parameters())


@pytest.mark.parametrize(("others", "stops"), [((0.0, 10.0), False), ((5.0, 10.0), True), ((math.nan, 10.0), False)])
def test_all_processes_decide_by_the_kl_of_all_their_tokens(others, stops):
    mine = Tally()
    mine.tokens = 10
    mine.add(approx_kl_k3_sum=torch.tensor(1.0))

    def reduce(tensor):
        return tensor + torch.tensor(others)

    assert went_too_far(mine, 0.2, reduce=reduce, device=torch.device("cpu")) == stops


# --- what else a report says of the texts


@given(st.lists(st.integers(0, 3), max_size=20))
def test_repetition_counts_the_trigrams_that_were_there_before(ids):
    before, again = [], 0
    for end in range(3, len(ids) + 1):
        trigram = ids[end - 3 : end]
        again += trigram in before
        before.append(trigram)
    assert repetition(np.array(ids, dtype=np.int32)) == pytest.approx(again / len(before) if before else 0.0)


def test_the_report_says_how_far_responses_repeat_themselves_and_how_many_end(update):
    run, trajectories = update
    metrics = run()[0].metrics
    stops = [t.rollout.finish == "stop" for t in trajectories]
    assert 0 < sum(stops) < len(stops)
    assert metrics["ended_fraction"] == sum(stops) / len(stops)
    assert metrics["ended_fraction"] + metrics["truncated_fraction"] == 1
    assert metrics["repetition"] == pytest.approx(np.mean([repetition(t.rollout.response_ids) for t in trajectories]))
