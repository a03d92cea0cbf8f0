import itertools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from actors.prompts import LengthSampler, PromptShare, PromptStream
from common.data_config import LengthRange
from common.errors import DataError

NEVER_BY_CHANCE = 1e-6


def texts_of(*lengths: int) -> list[np.ndarray]:
    return [np.arange(length, dtype=np.int32) + 1000 * index for index, length in enumerate(lengths)]


def stream(lengths=(9, 12, 7, 30, 10), prompt=(2, 6), response=(4, 15), seed=3) -> PromptStream:
    return PromptStream(
        texts_of(*lengths),
        prompt_tokens=LengthRange(min=prompt[0], max=prompt[1]),
        response_tokens=LengthRange(min=response[0], max=response[1]),
        seed=seed,
    )


def same(a, b) -> bool:
    return [
        (p.draw_index, p.prompt_id, p.token_ids.tolist(), p.max_new_tokens) for p in a
    ] == [(p.draw_index, p.prompt_id, p.token_ids.tolist(), p.max_new_tokens) for p in b]  # fmt: skip


def test_lengths_are_drawn_uniformly_with_both_bounds():
    counts = Counter(LengthSampler(3, 8).draw(11, key) for key in range(12_000))
    assert sorted(counts) == [3, 4, 5, 6, 7, 8]
    assert chisquare(list(counts.values())).pvalue > NEVER_BY_CHANCE


def test_lengths_drawn_with_neighbouring_keys_are_independent():
    draws = [LengthSampler(1, 3).draw(0, key) for key in range(9001)]
    pairs = Counter(itertools.pairwise(draws))
    assert chisquare([pairs[a, b] for a in (1, 2, 3) for b in (1, 2, 3)]).pvalue > NEVER_BY_CHANCE


def test_equal_bounds_mean_a_fixed_length():
    assert {LengthSampler(5, 5).draw(key) for key in range(50)} == {5}


@given(st.integers(1, 100), st.integers(0, 100), st.lists(st.integers(-(2**63), 2**63), min_size=1, max_size=4))
def test_a_length_is_a_pure_function_of_its_key_within_the_bounds(low, span, key):
    length = LengthSampler(low, low + span).draw(*key)
    assert low <= length <= low + span
    assert length == LengthSampler(low, low + span).draw(*key)


@pytest.mark.parametrize("bounds", [(0, 3), (4, 3)])
def test_impossible_bounds_are_refused(bounds):
    with pytest.raises(ValueError, match="need 1 <= min <= max"):
        LengthSampler(*bounds)


def test_a_prompt_is_the_beginning_of_its_text():
    prompts = stream().take(200)
    texts = texts_of(9, 12, 7, 30, 10)
    for prompt in prompts:
        assert prompt.token_ids.dtype == np.int32
        assert prompt.token_ids.tolist() == texts[prompt.prompt_id][: len(prompt.token_ids)].tolist()
    assert {len(p.token_ids) for p in prompts} == {2, 3, 4, 5, 6}
    assert {p.max_new_tokens for p in prompts} == set(range(4, 16))


def test_a_prompt_does_not_share_memory_with_the_texts():
    texts = texts_of(9, 9)
    source = PromptStream(
        texts, prompt_tokens=LengthRange(min=2, max=2), response_tokens=LengthRange(min=1, max=1), seed=0
    )
    source.prompt_at(0).token_ids[:] = -1
    assert all((text >= 0).all() for text in texts)


def test_an_epoch_draws_every_text_once_and_the_next_one_in_another_order():
    source = stream(lengths=(8,) * 50)
    first, second = ([p.prompt_id for p in source.take(50)] for _ in range(2))
    assert sorted(first) == sorted(second) == list(range(50))
    assert first != second
    assert first != list(range(50))


def test_every_text_is_drawn_at_every_position_equally_often():
    firsts = Counter(stream(lengths=(8,) * 6, seed=seed).prompt_at(0).prompt_id for seed in range(3000))
    assert chisquare([firsts[i] for i in range(6)]).pvalue > NEVER_BY_CHANCE


@given(st.integers(0, 40), st.integers(1, 20))
def test_going_on_from_a_saved_cursor_gives_the_same_prompts(done, more):
    whole = stream()
    whole.take(done)
    state = json.loads(json.dumps(whole.state_dict()))
    resumed = stream()
    resumed.load_state_dict(state)
    assert resumed.next_draw_index == done
    assert same(resumed.take(more), whole.take(more))


def test_a_prompt_does_not_depend_on_what_was_drawn_before():
    in_order = stream().take(60)
    backwards = [stream().prompt_at(60 - 1 - i) for i in range(60)][::-1]
    one_stream = stream()
    jumping = {i: one_stream.prompt_at(i) for i in np.random.default_rng(0).permutation(60).tolist()}
    assert same(in_order, backwards)
    assert same(in_order, [jumping[i] for i in range(60)])
    assert one_stream.next_draw_index == 0


def test_another_seed_gives_other_prompts():
    assert not same(stream(seed=1).take(20), stream(seed=2).take(20))


def test_taking_in_portions_gives_the_same_as_taking_at_once():
    portions = stream()
    assert same(portions.take(3) + portions.take(0) + portions.take(9), stream().take(12))


def test_short_texts_leave_at_least_one_token_out_of_their_prompts():
    source = stream(lengths=(3, 4, 6, 40), prompt=(2, 8))
    lengths = {i: set() for i in range(4)}
    for prompt in source.take(800):
        lengths[prompt.prompt_id].add(len(prompt.token_ids))
    assert lengths == {0: {2}, 1: {2, 3}, 2: {2, 3, 4, 5}, 3: {2, 3, 4, 5, 6, 7, 8}}


def test_texts_too_short_for_any_prompt_are_left_out_and_ids_still_name_the_source():
    source = stream(lengths=(2, 9, 0, 3, 1), prompt=(2, 8))
    assert len(source) == 2
    assert {p.prompt_id for p in source.take(10)} == {1, 3}


def test_no_text_long_enough_is_an_error_with_the_numbers():
    with pytest.raises(
        DataError, match=r"none of 3 texts.*prompt_tokens\.min=5 needs texts of 6 tokens.*longest has 5"
    ):
        stream(lengths=(3, 5, 4), prompt=(5, 9))
    with pytest.raises(DataError, match="none of 0 texts"):
        stream(lengths=())


@pytest.mark.parametrize("state", [{}, {"next_draw_index": -1}, {"next_draw_index": "4"}])
def test_a_damaged_cursor_is_refused_and_the_stream_stays_where_it_was(state):
    source = stream()
    source.take(4)
    with pytest.raises(ValueError, match="next_draw_index"):
        source.load_state_dict(state)
    assert source.next_draw_index == 4


def test_a_position_before_the_start_is_refused():
    with pytest.raises(ValueError, match="before the start"):
        stream().prompt_at(-1)


# --- whole prompts, and several sources by weight -----------------------------------------------------------------


def mixed(lengths, whole, *, prompt=(2, 6), seed=3, shares=()) -> PromptStream:
    return PromptStream(
        texts_of(*lengths),
        prompt_tokens=LengthRange(min=prompt[0], max=prompt[1]),
        response_tokens=LengthRange(min=4, max=15),
        seed=seed,
        whole=whole,
        shares=[PromptShare(f"source {i}", num, weight) for i, (num, weight) in enumerate(shares)],
    )


def test_whole_prompts_are_drawn_as_they_are_and_too_long_ones_are_left_out_and_counted():
    source = mixed((1, 6, 7, 9, 30), [True, True, True, True, False])
    prompts = source.take(60)
    assert source.num_too_long == 2
    assert len(source) == 3
    assert {p.prompt_id: len(p.token_ids) for p in prompts if p.prompt_id < 4} == {0: 1, 1: 6}
    assert {len(p.token_ids) for p in prompts if p.prompt_id == 4} == {2, 3, 4, 5, 6}


def test_texts_alone_are_drawn_as_ever_whatever_else_a_stream_can_do():
    """The prompts of runs that know neither whole prompts nor weights stay theirs."""
    lengths = (9, 12, 7, 30, 10)
    assert same(mixed(lengths, [False] * 5).take(40), stream(lengths).take(40))
    assert same(mixed(lengths, None, shares=[(5, 2.0)]).take(40), stream(lengths).take(40))


def test_no_fitting_whole_prompt_is_an_error_with_the_numbers():
    with pytest.raises(DataError, match=r"none of 2 whole prompts fits prompt_tokens\.max=6: the shortest has 8"):
        mixed((9, 8), [True, True])


def test_a_source_without_a_fitting_prompt_is_named():
    with pytest.raises(DataError, match="none of 2 texts of source 1 gives a prompt of 2 to 6 tokens"):
        mixed((9, 9, 1, 2), None, shares=[(2, 1.0), (2, 1.0)])


@given(st.integers(0, 10**7), st.integers(0, 200))
def test_the_source_of_a_draw_follows_from_seed_and_index_alone(seed, draw_index):
    shares = [(3, 3.0), (4, 1.0)]
    lengths, whole = (9, 1, 8, 5, 9, 30, 6), [False] * 3 + [True] * 4
    one, other = (mixed(lengths, whole, seed=seed, shares=shares) for _ in range(2))
    one.take(7)
    assert same([one.prompt_at(draw_index)], [other.prompt_at(draw_index)])


def test_sources_are_drawn_by_weight_and_each_runs_through_its_own_epochs():
    """Text 1 is too short, text 5 too long: sources of two texts and of three."""
    shares, whole = [(3, 3.0), (4, 1.0)], [False] * 3 + [True] * 4
    ids = [p.prompt_id for p in mixed((9, 1, 8, 5, 6, 30, 6), whole, shares=shares).take(240)]
    assert Counter(ids) == {0: 90, 2: 90, 3: 20, 4: 20, 6: 20}
    for of_source, size in (([i for i in ids if i < 3], 2), ([i for i in ids if i >= 3], 3)):
        epochs = [tuple(of_source[start : start + size]) for start in range(0, len(of_source), size)]
        assert {tuple(sorted(epoch)) for epoch in epochs} == {tuple(sorted(set(of_source)))}
        assert len(set(epochs)) > 1


def test_a_weighted_stream_goes_on_from_its_cursor():
    whole, resumed = (mixed((9, 9, 8, 8, 8), None, shares=[(2, 5.0), (3, 2.0)]) for _ in range(2))
    whole.take(17)
    resumed.load_state_dict(json.loads(json.dumps(whole.state_dict())))
    assert same(resumed.take(30), whole.take(30))
