"""The door of the learner: what is refused, what the padded tensors hold, and in which order rows stand."""

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from common.records import (
    Identity,
    Judgement,
    JudgementChunk,
    Prompt,
    ReferenceChunk,
    Rollout,
    RolloutChunk,
    Trajectory,
)
from learner.batch import Batch, in_order, join

CPU = torch.device("cpu")
EOS = 2


def trajectory(draw=0, *, prompt=(5, 6), response=(7, 8, EOS), logprobs=None, refs=None, finish="stop", **changed):
    response = np.array(response, dtype=np.int32)
    given = -np.arange(1, len(response) + 1) if logprobs is None else logprobs
    rollout = Rollout(
        draw_index=draw,
        sample_index=changed.get("sample_index", 0),
        attempt=0,
        seed=9,
        response_ids=response,
        logprobs=np.array(given, dtype=np.float32),
        identity=changed.get("identity", Identity(0, 0)),
        finish=finish,
    )
    return Trajectory(
        Prompt(draw, 0, np.array(prompt, dtype=np.int32), 8),
        rollout,
        Judgement(draw, rollout.sample_index, changed.get("score", 1.0), {}, "test"),
        None if refs is None else np.array(refs, dtype=np.float32),
    )


def test_a_batch_pads_on_the_right_and_masks_by_length():
    batch = Batch.of(
        [
            trajectory(0, prompt=(5,), response=(7, 8, EOS), refs=(-3, -2, -1), score=2.5),
            trajectory(1, prompt=(3, 4, 5, 6), response=(9,), refs=(-4,), finish="length", score=-1),
        ],
        CPU,
    )
    assert batch.input_ids.tolist() == [[5, 7, 8, EOS, 0], [3, 4, 5, 6, 9]]
    assert batch.prompt_lengths.tolist() == [1, 4]
    assert batch.response_lengths.tolist() == [3, 1]
    assert batch.response_mask.tolist() == [[True, True, True], [True, False, False]]
    assert batch.behaviour_logprobs.tolist() == [[-1, -2, -3], [-1, 0, 0]]
    assert batch.ref_logprobs.tolist() == [[-3, -2, -1], [-4, 0, 0]]
    assert batch.is_truncated.tolist() == [False, True]
    assert batch.scores.tolist() == [2.5, -1]
    assert len(batch) == 2
    assert batch.num_slots == 3


@pytest.mark.parametrize("eos", [0, EOS])
def test_the_eos_token_is_live_even_where_it_is_the_id_of_the_padding(eos):
    """Trap 5: with eos 0 the finished rows end in the very id that pads them."""
    batch = Batch.of(
        [trajectory(0, response=(7, eos)), trajectory(1, response=(eos,)), trajectory(2, response=(7, 8, 9, 10, eos))],
        CPU,
    )
    ids = batch.input_ids[:, 2:]
    assert batch.response_mask.sum(1).tolist() == [2, 1, 5]
    assert ((ids == eos) & batch.response_mask).sum(1).tolist() == [1, 1, 1]


def test_a_prompt_may_hold_the_eos_token():
    batch = Batch.of([trajectory(0, prompt=(EOS, 5, EOS), response=(7, EOS))], CPU)
    assert batch.prompt_lengths.tolist() == [3]
    assert batch.response_mask.tolist() == [[True, True]]


def test_truncation_is_what_the_worker_says_and_not_what_the_width_suggests():
    """Trap 8: the longest row ended by itself, a short one was cut."""
    rows = [trajectory(0, response=(7, 8, 9, EOS)), trajectory(1, response=(7,), finish="length")]
    assert Batch.of(rows, CPU).is_truncated.tolist() == [False, True]


def test_rows_picks_rows_in_the_order_asked_for_and_trims_what_all_of_them_pad():
    batch = Batch.of(
        [
            trajectory(0, prompt=(5,), response=(7, EOS), refs=(-1, -2), score=0),
            trajectory(1, prompt=(5, 6, 7, 8), response=(7, 8, 9, EOS), refs=(-1, -2, -3, -4), score=1),
            trajectory(2, prompt=(4, 3), response=(EOS,), refs=(-9,), score=2),
        ],
        CPU,
    )
    part = batch.rows(torch.tensor([2, 0]))
    assert part.input_ids.tolist() == [[4, 3, EOS], [5, 7, EOS]]
    assert part.num_slots == 2
    assert part.scores.tolist() == [2, 0]
    assert part.response_mask.tolist() == [[True, False], [True, True]]
    assert part.ref_logprobs.tolist() == [[-9, 0], [-1, -2]]
    whole = batch.rows(torch.arange(3))
    for field in fields(Batch):
        assert torch.equal(getattr(whole, field.name), getattr(batch, field.name)), field.name


def test_rows_without_reference_stay_without():
    assert Batch.of([trajectory(0), trajectory(1)], CPU).rows(torch.tensor([1])).ref_logprobs is None


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "at least one trajectory"),
        ([trajectory(3, prompt=())], "draw 3: prompt and response need at least one token"),
        ([trajectory(4, response=())], "draw 4: prompt and response need at least one token"),
        ([trajectory(5, logprobs=(-1, -1))], r"draw 5: .*different lengths \[2, 3\]"),
        ([trajectory(6, refs=(-1,))], r"draw 6: .*different lengths \[1, 3\]"),
        ([trajectory(7, logprobs=(-1, np.nan, -1))], "draw 7: logprobs must be finite"),
        ([trajectory(8, logprobs=(-1, -np.inf, -1))], "draw 8: logprobs must be finite"),
        ([trajectory(9, logprobs=(-1, 0.5, -1))], "draw 9: .*at most 0"),
        ([trajectory(0), trajectory(1, refs=(-1, -1, -1))], "1 of 2 trajectories have reference logprobs"),
    ],
)
def test_a_malformed_trajectory_is_refused_with_its_draw(rows, message):
    with pytest.raises(ValueError, match=message):
        Batch.of(rows, CPU)


def test_a_batch_of_a_certain_token_is_legal():
    """A logprob of 0, or a rounding above it, is no error."""
    assert Batch.of([trajectory(0, logprobs=(0, 1e-7, -1))], CPU).behaviour_logprobs[0, 1] > 0


def payloads(rows):
    rollouts = RolloutChunk(tuple(t.prompt for t in rows), tuple(t.rollout for t in rows), 1.0)
    return rollouts, JudgementChunk(tuple(t.judgement for t in rows))


def test_join_brings_the_three_payloads_together():
    rows = [trajectory(0, refs=(-1, -2, -3)), trajectory(1, response=(7,), refs=(-5,))]
    reference = ReferenceChunk(tuple(t.ref_logprobs for t in rows))
    assert [t.ref_logprobs.tolist() for t in join(*payloads(rows), reference)] == [[-1, -2, -3], [-5]]
    assert [t.rollout.draw_index for t in join(*payloads(rows), None)] == [0, 1]
    assert [t.ref_logprobs for t in join(*payloads(rows), None)] == [None, None]


def test_join_refuses_judgements_of_other_samples():
    rows = [trajectory(0), trajectory(1)]
    rollouts, judgements = payloads(rows)
    swapped = JudgementChunk(judgements.judgements[::-1])
    with pytest.raises(ValueError, match=r"draw 0 was joined with samples \[\(0, 0\), \(1, 0\)\]"):
        join(rollouts, swapped, None)


def test_join_refuses_another_sample_of_the_same_draw():
    rollouts, judgements = payloads([trajectory(0)])
    other = JudgementChunk((replace(judgements.judgements[0], sample_index=1),))
    with pytest.raises(ValueError, match=r"\[\(0, 0\), \(0, 1\)\]"):
        join(rollouts, other, None)


def test_join_refuses_a_prompt_of_another_draw():
    rows = [trajectory(0)]
    rollouts, judgements = payloads(rows)
    with pytest.raises(ValueError, match="prompt of draw 5"):
        join(RolloutChunk((replace(rows[0].prompt, draw_index=5),), rollouts.rollouts, 1.0), judgements, None)


def test_join_refuses_payloads_of_different_sizes():
    rows = [trajectory(0), trajectory(1)]
    rollouts, judgements = payloads(rows)
    with pytest.raises(ValueError, match="shorter"):
        join(rollouts, JudgementChunk(judgements.judgements[:1]), None)
    with pytest.raises(ValueError, match="shorter"):
        join(rollouts, judgements, ReferenceChunk((np.zeros(3, dtype=np.float32),)))


def test_in_order_sorts_by_draw_and_then_by_sample():
    rows = [trajectory(1), trajectory(0, sample_index=1), trajectory(10), trajectory(0), trajectory(2)]
    keys = [(t.rollout.draw_index, t.rollout.sample_index) for t in in_order(rows, expected=Identity(0, 0))]
    assert keys == [(0, 0), (0, 1), (1, 0), (2, 0), (10, 0)]


def test_in_order_refuses_a_sample_that_came_twice():
    """Trap 26: the second answer of a retried task."""
    rows = [trajectory(3), trajectory(2), replace(trajectory(3), rollout=replace(trajectory(3).rollout, attempt=1))]
    with pytest.raises(ValueError, match="draw 3, sample 0 came twice"):
        in_order(rows, expected=None)


@pytest.mark.parametrize("other", [Identity(0, 4), Identity(1, 5), Identity(0, 6)])
def test_in_order_refuses_samples_of_other_weights_unless_staleness_is_allowed(other):
    rows = [trajectory(0, identity=Identity(0, 5)), trajectory(1, identity=other)]
    with pytest.raises(ValueError, match=rf"draw 1 was generated by weights {other}, but the learner holds 0\.5"):
        in_order(rows, expected=Identity(0, 5))
    assert len(in_order(rows, expected=None)) == 2


def test_with_staleness_samples_may_be_of_earlier_weights_of_the_same_lineage_and_of_no_others():
    held = Identity(1, 5)
    rows = [trajectory(0, identity=Identity(1, 5)), trajectory(1, identity=Identity(1, 2))]
    assert len(in_order(rows, expected=held, max_staleness=1)) == 2, "a late one is not thrown away"
    for other in (Identity(1, 6), Identity(0, 4)):
        with pytest.raises(ValueError, match=rf"generated by weights {other}, but the learner holds 1\.5"):
            in_order([*rows, trajectory(2, identity=other)], expected=held, max_staleness=3)


def test_of_a_chunk_that_two_updates_share_each_gets_its_own_draws():
    rows = [trajectory(draw) for draw in range(4)]
    first, second = join(*payloads(rows), None, (0, 1)), join(*payloads(rows), None, (2, 3))
    assert [[t.rollout.draw_index for t in part] for part in (first, second)] == [[0, 1], [2, 3]]
    with pytest.raises(ValueError, match=r"draws \[9\] of a chunk are not in its payloads"):
        join(*payloads(rows), None, (3, 9))


def test_join_leaves_out_a_whole_group_where_one_sample_has_no_judgement():
    rows = [trajectory(draw, sample_index=k) for draw in (0, 1) for k in range(3)]
    rollouts, judgements = payloads(rows)
    without = list(judgements.judgements)
    without[1] = None
    left = join(rollouts, JudgementChunk(tuple(without)), None)
    assert [(t.rollout.draw_index, t.rollout.sample_index) for t in left] == [(1, 0), (1, 1), (1, 2)]


@pytest.mark.parametrize("samples", [[0, 2], [1, 2], [0], [0, 1, 2]])
def test_in_order_refuses_groups_that_are_not_whole(samples):
    rows = [trajectory(0), trajectory(0, sample_index=1), *(trajectory(1, sample_index=k) for k in samples)]
    with pytest.raises(ValueError, match=rf"draw 1 has samples \[{', '.join(map(str, samples))}\]"):
        in_order(rows, expected=None, samples_per_prompt=2)
    whole = [trajectory(draw, sample_index=k) for draw in (1, 0) for k in (1, 0)]
    assert len(in_order(whole, expected=None, samples_per_prompt=2)) == 4
