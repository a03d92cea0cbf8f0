"""A checkpoint from before there was a setting: it is of the same run where the setting stands at its default."""

import json

import pytest

from common.errors import ConfigError
from deploy.ppo.new_settings import at_their_default
from deploy.ppo.resume import refuse_changes, run_settings

INPUTS = {"policy": "11", "reward_model": "22"}


def both(config, *absent):
    """Settings of an older checkpoint, which lacks all that begins so, and those of now."""
    now = json.loads(json.dumps(run_settings(config, INPUTS), allow_nan=False))
    saved = {key: value for key, value in now.items() if not key.startswith(absent)}
    assert len(saved) < len(now)
    return saved, now


def may_go_on(config, *absent):
    """The settings that are taken to be at their default; raises ConfigError where the run may not go on."""
    saved, now = both(config, *absent)
    new = at_their_default(config, saved, now)
    refuse_changes({**saved, **new}, now)
    assert set(new) == now.keys() - saved.keys()
    return new


@pytest.mark.parametrize(
    ("absent", "change"),
    [
        ("ppo.clip_eps_high", "ppo.clip_eps_high=0.3"),
        ("ppo.optimizer.weight_decay", "ppo.optimizer.weight_decay=0.5"),
        ("ppo.gamma", "ppo.gamma=0.9"),
        ("rollout.threads", "rollout.threads=2"),
        ("learner.dtype", "learner.dtype='bfloat16'"),
    ],
)
def test_a_setting_that_is_new_counts_as_equal_only_at_its_default(tiny, absent, change):
    default, changed = (run_settings(config, INPUTS)[absent] for config in (tiny(), tiny(change)))
    assert may_go_on(tiny(), absent) == {absent: default}
    with pytest.raises(ConfigError, match=rf"{absent}: not there in the checkpoint, {changed} now"):
        may_go_on(tiny(change), absent)


def test_a_table_that_is_new_counts_as_equal_only_if_all_of_it_is_as_declared(tiny):
    fields = type(tiny().rollout).model_fields
    as_declared = f"rollout.chunk_sequences={fields['chunk_sequences'].default}"
    assert may_go_on(tiny(as_declared), "rollout.").keys() > {"rollout.chunk_sequences", "rollout.threads"}
    with pytest.raises(ConfigError, match=r"\n  rollout\.threads: not there in the checkpoint, 2 now\n"):
        may_go_on(tiny(as_declared, "rollout.threads=2"), "rollout.")


@pytest.mark.parametrize("absent", ["seed", "inputs.policy", "data.reviews", "format", "ppo.prompt_tokens.max"])
def test_what_has_no_default_is_refused(tiny, absent):
    with pytest.raises(ConfigError, match=rf"{absent}: not there in the checkpoint"):
        may_go_on(tiny("seed=8"), absent)


def test_what_the_checkpoint_has_and_the_run_has_not_is_refused(tiny):
    saved, now = both(tiny(), "ppo.gamma")
    with pytest.raises(ConfigError, match=r"ppo\.gamma: .* in the checkpoint, not there now"):
        refuse_changes(now, saved)
