"""Which updates can be recomputed, and from where: by what is on record."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import DataError
from deploy.replay.plan import Start, plan, spans

BEGINNING = Start(0, 0, "before PPO")


def kept(step, lineage=0):
    return Start(step, lineage, f"step_{step:06d}", f"/there/{step}")


def made(*steps, lineage=0):
    return {step: f"{lineage}.{step}" for step in steps}


def starts(planned):
    return {update: start.step for update, start in planned.starts.items()}


def test_each_update_begins_with_the_newest_start_before_it():
    planned = plan(made(*range(1, 8)), frozenset(range(1, 8)), [kept(3), kept(6)], beginning=BEGINNING)
    assert starts(planned) == {1: 0, 2: 0, 3: 0, 4: 3, 5: 3, 6: 3, 7: 6}
    assert planned.refused == {}
    assert planned.start_of(7).url == "/there/6"


def test_an_earlier_start_can_be_asked_for():
    done = made(*range(1, 8))
    for step, expected in ((0, 0), (4, 3), (9, 6)):
        planned = plan(done, frozenset(done), [kept(3), kept(6)], beginning=BEGINNING, from_step=step)
        assert planned.start_of(7).step == expected


def test_a_checkpoint_of_weights_that_were_gone_back_on_is_no_start():
    """Lineage 0 came to update 5 and was given up; lineage 1 went on from update 3."""
    done = made(1, 2, 3) | made(4, 5, 6, lineage=1)
    planned = plan(done, frozenset(done), [kept(3), kept(5), kept(4, lineage=1)], beginning=BEGINNING)
    assert starts(planned) == {1: 0, 2: 0, 3: 0, 4: 3, 5: 4, 6: 4}
    [note] = planned.notes
    assert "step_000005 is of weights 0.5" in note


def test_what_is_missing_is_named_and_what_is_legal():
    planned = plan(made(1, 2, 3, 5, 6, 7), frozenset({1, 3, 4, 5, 6, 7, 8}), [kept(5)], beginning=BEGINNING)
    assert starts(planned) == {1: 0, 6: 5, 7: 5}
    for update, why in (
        (2, "the trajectories of update 2 are not there, and before PPO"),
        (3, "the trajectories of update 2 are not there, and before PPO"),
        (4, "no line of it"),
        (5, "no line of update 4, after before PPO"),
        (8, "no line of it: it is not done, or no step of it was finite"),
    ):
        with pytest.raises(DataError) as told:
            planned.start_of(update)
        assert f"update {update} cannot be replayed: " in str(told.value)
        assert why in str(told.value)
        assert "Replayable are 1, 6-7." in str(told.value)
        assert "ppo.checkpoint_every and ppo.keep_last" in str(told.value)
    with pytest.raises(DataError, match=r"there is no update 9 to replay. Replayable are 1, 6-7"):
        planned.start_of(9)


def test_a_run_without_updates_has_none_to_replay():
    planned = plan({}, frozenset(), [], beginning=BEGINNING)
    with pytest.raises(DataError, match="Replayable are none"):
        planned.start_of(1)


@given(
    done=st.sets(st.integers(1, 9)),
    recorded=st.sets(st.integers(1, 9)),
    checkpoints=st.sets(st.integers(1, 9)),
)
def test_an_update_can_be_replayed_if_all_since_some_start_is_on_record(done, recorded, checkpoints):
    planned = plan(made(*done), recorded, [kept(step) for step in sorted(checkpoints)], beginning=BEGINNING)
    for update in range(1, 10):
        able = [
            start
            for start in ({0} | (checkpoints & done))
            if start < update and set(range(start + 1, update + 1)) <= done & recorded
        ]
        assert (starts(planned).get(update) in able) == bool(able)
        if able:
            assert starts(planned)[update] == max(able)
        assert (update in planned.refused) == (update in done | recorded and not able)


@given(st.sets(st.integers(0, 20)))
def test_spans_name_every_number_once(numbers):
    told = [piece.split("-") for piece in spans(numbers).split(", ") if piece]
    assert [n for ends in told for n in range(int(ends[0]), int(ends[-1]) + 1)] == sorted(numbers)
