"""How a minibatch is cut, and that its gradient does not depend on it."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from learner.packing import by_sequences, by_tokens

row_lengths = st.lists(st.integers(1, 30), min_size=1, max_size=40)


def padded_tokens(lengths, piece):
    return len(piece) * int(lengths[piece].max())


@given(row_lengths, st.integers(30, 200))
def test_every_row_is_in_one_piece_and_every_piece_within_the_budget(lengths, budget):
    lengths = torch.tensor(lengths)
    pieces = by_tokens(lengths, budget)
    assert sorted(torch.cat(pieces).tolist()) == list(range(len(lengths)))
    assert all(padded_tokens(lengths, piece) <= budget for piece in pieces)


@given(row_lengths, st.integers(30, 200))
def test_pieces_go_from_long_to_short_and_none_could_take_the_first_row_of_the_next(lengths, budget):
    lengths = torch.tensor(lengths)
    pieces = by_tokens(lengths, budget)
    assert (lengths[torch.cat(pieces)].diff() <= 0).all()
    for piece in pieces[:-1]:
        assert (len(piece) + 1) * int(lengths[piece].max()) > budget


def test_rows_of_one_length_keep_their_order():
    pieces = by_tokens(torch.tensor([3, 5, 3, 5, 3]), 10)
    assert [piece.tolist() for piece in pieces] == [[1, 3], [0, 2, 4]]


def test_a_row_that_exceeds_the_budget_is_an_error():
    with pytest.raises(ValueError, match="a sample of 11 tokens exceeds microbatch_tokens=10; raise it"):
        by_tokens(torch.tensor([3, 11]), 10)


def test_by_sequences_the_last_piece_may_be_short():
    assert [piece.tolist() for piece in by_sequences(5, 2)] == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("advantage", ["gae", "rloo"])
def test_the_gradient_does_not_depend_on_the_token_budget(
    tiny_policy, sample, make_learner, gradients, weights_of, assert_close, advantage
):
    """Trap 12 in float64, with all losses: from one row at a time to the whole minibatch at once."""
    policy = tiny_policy()
    trajectories = sample(policy, reference=tiny_policy(seed=1), samples_per_prompt=2)
    seen = {}
    for budget in (None, 16, 40, 10_000):
        learner = make_learner(
            policy,
            double=True,
            advantage=advantage,
            samples_per_prompt=2,
            microbatch_tokens=budget,
            prompt_tokens={"min": 1, "max": 5},
            response_tokens={"min": 1, "max": 8},
            reference="service",
            kl_loss_coef=0.3,
            entropy_coef=0.2,
            value_coef=0.5,
            max_grad_norm=math.inf,
            optimizer={"type": "adamw", "lr": 1e-3, "eps": 1e-2},
        )
        passes = []
        learner.model.register_forward_hook(lambda module, args, out, passes=passes: passes.append(args[0].shape))
        steps = gradients(learner)
        report = learner.update(trajectories)
        seen[budget] = (steps, weights_of(learner), report.metrics, passes)
    steps, weights, metrics, _ = seen[None]
    assert len(steps) == 4
    for budget in (16, 40, 10_000):
        mine, after, told, passes = seen[budget]
        for left, right in zip(mine, steps, strict=True):
            assert_close(left, right, relative=1e-5)
        assert_close(after, weights, relative=1e-7)
        assert told == pytest.approx(metrics, rel=1e-4, abs=1e-6)
        assert all(rows * tokens <= budget for rows, tokens in passes)
    assert len(seen[16][3]) > len(seen[40][3]) > len(seen[10_000][3])


def test_old_logprobs_come_back_in_the_order_of_the_rows(tiny_policy, sample, make_learner):
    policy = tiny_policy()
    learner = make_learner(
        policy, microbatch_tokens=20, prompt_tokens={"min": 1, "max": 5}, response_tokens={"min": 1, "max": 8}
    )
    assert learner.update(sample(policy)).metrics["logprob_gap_max"] < 1e-4
