"""Recorded trajectories, read back: as much of them as an update depends on."""

from dataclasses import replace

import numpy as np
import pytest

from common.errors import DataError
from learner.trajectory_file import read_back, read_trajectories, write_trajectories


@pytest.mark.parametrize("samples_per_prompt", [1, 4])
@pytest.mark.parametrize("with_reference", [False, True])
def test_what_is_read_back_is_what_was_written(tiny_policy, sample, tmp_path, samples_per_prompt, with_reference):
    policy = tiny_policy()
    written = sample(
        policy, step=3, lineage=2, reference=policy if with_reference else None, samples_per_prompt=samples_per_prompt
    )
    write_trajectories(tmp_path / "one", written)
    found = read_back(tmp_path / "one", lineage=2)
    for one, other in zip(written, found, strict=True):
        assert (one.rollout.draw_index, one.rollout.sample_index) == (
            other.rollout.draw_index,
            other.rollout.sample_index,
        )
        assert one.rollout.identity == other.rollout.identity
        assert (one.rollout.finish, one.rollout.seed) == (other.rollout.finish, other.rollout.seed)
        assert (one.judgement.score, one.judgement.parts) == (other.judgement.score, other.judgement.parts)
        assert one.prompt.prompt_id == other.prompt.prompt_id
        for mine, theirs in (
            (one.prompt.token_ids, other.prompt.token_ids),
            (one.rollout.response_ids, other.rollout.response_ids),
            (one.rollout.logprobs, other.rollout.logprobs),
        ):
            assert mine.dtype == theirs.dtype
            assert np.array_equal(mine, theirs)
        assert (one.ref_logprobs is None) == (other.ref_logprobs is None) == (not with_reference)
    assert {t.rollout.finish for t in found} == {"stop", "length"}, "one of the two was not tested"
    write_trajectories(tmp_path / "other", found)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "other").read_bytes()


@pytest.mark.parametrize("lost", ["score", "logprobs", "logprobs_offsets", "all of it", "its end"])
def test_a_file_that_is_damaged_is_named(tiny_policy, sample, tmp_path, lost):
    from safetensors.numpy import load_file, save_file

    path = tmp_path / "one"
    write_trajectories(path, sample(tiny_policy()))
    if lost == "all of it":
        path.unlink()
    elif lost == "its end":
        path.write_bytes(path.read_bytes()[:-100])
    else:
        save_file({name: column for name, column in load_file(path).items() if name != lost}, path)
    with pytest.raises(DataError, match=rf"{path} cannot be read as trajectories"):
        read_back(path)


def test_trajectories_that_were_read_back_train_as_those_that_were_not(
    tiny_policy, sample, make_learner, weights_of, changed, tmp_path
):
    policy = tiny_policy()
    trajectories = sample(policy, reference=policy)
    write_trajectories(tmp_path / "one", trajectories)
    settings = {"reference": "service", "kl": {"type": "fixed", "coef": 0.1}, "missing_eos_penalty": 1.0}
    first, second, third = (make_learner(policy, **settings) for _ in range(3))
    first.update(trajectories)
    second.update(read_back(tmp_path / "one"))
    assert changed(weights_of(first), weights_of(second)) == []
    other = [replace(t, rollout=replace(t.rollout, finish="stop")) for t in trajectories]
    third.update(other)
    assert changed(weights_of(first), weights_of(third)), "truncation plays no part: nothing was tested"
    assert read_trajectories(tmp_path / "one")["truncated"].any()
