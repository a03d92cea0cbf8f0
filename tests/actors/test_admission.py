"""Staleness as arithmetic: nothing that admission lets through is ever too old to be trained on."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.admission import capacity, staleness


@pytest.mark.parametrize(
    ("step", "submitted", "max_staleness", "expected"),
    [(0, 0, 0, 8), (0, 8, 0, 0), (1, 8, 0, 8), (3, 30, 0, 2), (0, 0, 2, 24), (2, 16, 1, 16), (0, 9, 0, 0)],
)
def test_capacity_is_what_the_updates_until_the_bound_still_need(step, submitted, max_staleness, expected):
    assert capacity(step=step, submitted=submitted, batch=8, max_staleness=max_staleness) == expected


@given(
    batch=st.integers(1, 16),
    max_staleness=st.integers(0, 4),
    moves=st.lists(st.one_of(st.just("update"), st.integers(0, 200)), max_size=60),
)
def test_no_sample_is_ever_trained_later_than_staleness_allows(batch, max_staleness, moves):
    """Samples are dispatched by whatever appetite as far as admitted, and trained in order, `batch` per update."""
    generated_at: list[int] = []
    step = 0
    for move in moves:
        room = capacity(step=step, submitted=len(generated_at), batch=batch, max_staleness=max_staleness)
        assert room >= 0
        if move != "update":
            generated_at += [step] * min(move, room)
        elif len(generated_at) >= (step + 1) * batch:
            ages = [staleness(trained_at=step, generated_at=g) for g in generated_at[step * batch : (step + 1) * batch]]
            assert max(ages) <= max_staleness
            step += 1
    for index, generated in enumerate(generated_at):
        assert index // batch - generated <= max_staleness


@given(step=st.integers(0, 50), batch=st.integers(1, 64), max_staleness=st.integers(0, 4))
def test_the_next_update_can_always_be_filled(step, batch, max_staleness):
    submitted = step * batch
    assert capacity(step=step, submitted=submitted, batch=batch, max_staleness=max_staleness) >= batch


def test_with_a_greedy_feeder_the_oldest_samples_are_exactly_as_old_as_allowed():
    submitted, generated_at = 0, []
    for step in range(6):
        room = capacity(step=step, submitted=submitted, batch=4, max_staleness=2)
        generated_at += [step] * room
        submitted += room
    ages = [staleness(trained_at=i // 4, generated_at=g) for i, g in enumerate(generated_at) if i // 4 <= 5]
    assert max(ages) == 2


def test_a_sample_of_newer_weights_than_the_learner_has_is_refused():
    assert staleness(trained_at=3, generated_at=3) == 0
    with pytest.raises(ValueError, match="weights 4 cannot be trained by update 3"):
        staleness(trained_at=3, generated_at=4)
