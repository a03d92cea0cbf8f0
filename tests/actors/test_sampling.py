"""Drawing one token of each row: the distribution is the softmax, wherever the blocks of the vocabulary end."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from actors.sampling import BLOCK, draw
from common.logprobs import log_distribution
from common.seeds import sample_seed

NEVER_BY_CHANCE = 1e-6
SIZES = (1, 7, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2000, 2001, 4096)


def seeds_of(count):
    return np.array([sample_seed(0, i, 0) for i in range(count)], dtype=np.uint64)


def drawn(logits, **settings):
    rows = len(logits)
    return draw(logits, seeds_of(rows), np.zeros(rows, np.int64), **{"temperature": 1.0} | settings)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_logprobs_are_those_of_the_distribution_whatever_the_size_of_the_vocabulary(size, temperature):
    logits = 4 * torch.randn(300, size, generator=torch.Generator().manual_seed(size))
    ids, logprobs = drawn(logits, temperature=temperature)
    assert int(ids.min()) >= 0
    assert int(ids.max()) < size
    expected = log_distribution(logits, temperature).gather(-1, ids[:, None]).squeeze(-1)
    torch.testing.assert_close(logprobs, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("size", [BLOCK + 1, 2 * BLOCK + 3, 5 * BLOCK])
def test_tokens_of_all_blocks_come_as_often_as_the_softmax_says(size):
    logits = torch.randn(size, generator=torch.Generator().manual_seed(1)).expand(60_000, -1)
    ids, _ = drawn(logits)
    counts = np.bincount(ids.numpy(), minlength=size)
    expected = torch.softmax(logits[0].double(), -1).numpy() * len(ids)
    assert chisquare(counts, expected).pvalue > NEVER_BY_CHANCE


def test_the_last_and_lone_token_of_a_vocabulary_is_drawn_where_it_has_all_the_mass():
    # A block that ends behind the vocabulary must not lose, nor gain, by what is not there.
    logits = torch.full((200, 2 * BLOCK + 1), -torch.inf)
    logits[:, -1] = -1000.0
    ids, logprobs = drawn(logits)
    assert set(ids.tolist()) == {2 * BLOCK}
    assert logprobs.abs().max() == 0


@settings(max_examples=40, deadline=None)
@given(size=st.integers(1, 3 * BLOCK), allowed=st.integers(0, 10**9))
def test_a_token_without_probability_is_never_drawn(size, allowed):
    logits = torch.full((64, size), -torch.inf)
    logits[:, allowed % size] = 0.0
    ids, logprobs = drawn(logits)
    assert set(ids.tolist()) == {allowed % size}
    assert logprobs.abs().max() == 0


def test_a_nucleus_across_blocks_keeps_its_own_logprobs():
    logits = torch.zeros(500, 3 * BLOCK)
    logits[:, [5, BLOCK + 5, 2 * BLOCK + 5]] = 12.0
    ids, logprobs = drawn(logits, top_p=0.9)
    assert set(ids.tolist()) == {5, BLOCK + 5, 2 * BLOCK + 5}
    torch.testing.assert_close(logprobs, torch.full((500,), -np.log(3), dtype=torch.float32), atol=1e-4, rtol=0)


def test_a_row_is_drawn_alike_whoever_is_beside_it():
    logits = torch.randn(9, 2001, generator=torch.Generator().manual_seed(3))
    seeds, slots = seeds_of(9), np.arange(9)
    together, _ = draw(logits, seeds, slots, 1.0)
    alone = [int(draw(logits[i : i + 1], seeds[i : i + 1], slots[i : i + 1], 1.0)[0]) for i in range(9)]
    assert together.tolist() == alone


def test_a_rounding_of_the_logits_changes_hardly_any_token():
    logits = torch.randn(5000, 2001, generator=torch.Generator().manual_seed(4))
    ids, _ = drawn(logits)
    moved, _ = drawn(logits * (1 + 1e-6))
    assert int((ids != moved).sum()) <= 5
