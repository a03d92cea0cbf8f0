"""Batches by length, results in the caller's order."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from reward_service.microbatch import by_length


def rows_of(lengths):
    return [np.full(length, number, dtype=np.int32) for number, length in enumerate(lengths)]


def describe(rows):
    """Each row's own number and length, whatever its place in the batch; -1 for an empty row."""
    return np.array([[row[0] if len(row) else -1, len(row)] for row in rows], dtype=np.float64)


@given(lengths=st.lists(st.integers(0, 20), min_size=1, max_size=30), batch_sequences=st.integers(1, 10))
def test_results_come_back_in_the_callers_order(lengths, batch_sequences):
    rows = rows_of(lengths)
    np.testing.assert_array_equal(by_length(rows, batch_sequences, describe), describe(rows))


@given(lengths=st.lists(st.integers(0, 20), min_size=1, max_size=30), batch_sequences=st.integers(1, 10))
def test_every_batch_holds_its_number_of_rows_of_like_length(lengths, batch_sequences):
    batches = []

    def compute(rows):
        batches.append([len(row) for row in rows])
        return describe(rows)

    by_length(rows_of(lengths), batch_sequences, compute)
    assert [len(batch) for batch in batches[:-1]] == [batch_sequences] * (len(batches) - 1)
    assert 1 <= len(batches[-1]) <= batch_sequences
    assert [n for batch in batches for n in batch] == sorted(lengths)


def test_equal_lengths_keep_their_order_so_that_runs_repeat():
    seen = []

    def compute(rows):
        seen.extend(int(row[0]) for row in rows)
        return describe(rows)

    by_length(rows_of([2, 1, 2, 1, 2]), 2, compute)
    assert seen == [1, 3, 0, 2, 4]
