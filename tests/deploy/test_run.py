"""What is said before a run starts."""

import pytest

from deploy.run import cautions


def test_a_usual_run_starts_without_a_caution(tiny):
    assert cautions(tiny()) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_weights_below_float32_are_cautioned_against(tiny, dtype):
    """Trap 28: there is no float32 master copy."""
    (caution,) = cautions(tiny(f"learner.dtype={dtype}", f"rollout.dtype={dtype}"))
    assert f"learner.dtype={dtype}" in caution
    assert "round to zero" in caution


def test_workers_of_another_precision_than_the_learner_are_pointed_out(tiny):
    (caution,) = cautions(tiny("rollout.dtype=bfloat16"))
    assert "logprob_gap_max" in caution
