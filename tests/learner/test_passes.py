"""A frozen trunk computed once per update gives what computing it in every pass gives."""

import math

import pytest

from common.frozen_trunk import FrozenTrunk
from common.modeling import decoder_layers

TOP = {"trainable_layers": 1, "reference": "shared_trunk", "kl": {"type": "fixed", "coef": 0.1}}


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("cut", [{}, {"microbatch_sequences": 2}, {"microbatch_tokens": 40}])
def test_kept_states_of_the_trunk_change_no_result(
    tiny_policy, sample, make_learner, weights_of, assert_close, monkeypatch, kind, cut
):
    policy = tiny_policy(kind)
    trajectories = sample(policy)
    seen = {}
    for way in ("kept", "anew"):
        if way == "anew":
            monkeypatch.setattr(FrozenTrunk, "of", lambda *_: None)
        learner = make_learner(policy, double=True, max_grad_norm=math.inf, **TOP, **cut)
        reports = [learner.update(trajectories)]
        seen[way] = (weights_of(learner), reports[0].metrics)
    assert_close(seen["kept"][0], seen["anew"][0], relative=1e-9)
    assert seen["kept"][1] == pytest.approx(seen["anew"][1], rel=1e-5, abs=1e-7)
    assert seen["kept"][1]["kl_seq_sum"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(("microbatch", "passes"), [(None, 1), (8, 2)], ids=["together", "as told"])
def test_the_trunk_is_computed_once_per_sample_and_update(tiny_policy, sample, make_learner, microbatch, passes):
    policy = tiny_policy()
    learner = make_learner(policy, epochs=3, microbatch_sequences=microbatch, **TOP)
    layers, ran = decoder_layers(learner.plain.policy), {"bottom": 0, "top": 0}
    for name, index in (("bottom", 0), ("top", -1)):

        def count(*_, name=name):
            ran[name] += 1

        layers[index].register_forward_hook(count)
    learner.update(sample(policy))
    first_and_reference, epochs = 2 * passes, 3 * 2  # two minibatches
    assert ran == {"bottom": passes, "top": first_and_reference + epochs}
    assert learner.passes._kept is None, "nothing is held until the next update"
