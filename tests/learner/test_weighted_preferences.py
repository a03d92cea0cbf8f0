"""Training on preferences draws from its sources by weight."""

import pytest
from accelerate import Accelerator

from common.config import RunConfig
from common.config_file import parse_config
from common.errors import ConfigError
from learner.reward_model import train_reward_model

WORDS = ["rain", "snow", "ice", "fog", "dew", "hail", "wind", "sun", "cloud", "storm"]
PAIRS = [{"chosen": f"good {a} and {b}", "rejected": f"bad {a} and {b}"} for a in WORDS for b in WORDS[:4] if a != b]
TURNED = [{"chosen": pair["rejected"], "rejected": pair["chosen"]} for pair in PAIRS]


def document(**weights):
    rows = {"type": "inline", "rows": {"type": "preferences"}}
    training = {
        "type": "preferences",
        "data": ["straight", "turned"],
        "epochs": 10,
        "batch_rankings": 8,
        "optimizer": {"type": "adamw", "lr": 1e-2},
    }
    return {
        "name": "rm",
        "heldout_fraction": 0.25,
        "data": {"straight": rows | {"records": PAIRS}, "turned": rows | {"records": TURNED}},
        "model": {"type": "pretrained", "path": "unused"},
        "reward_model": {
            "classifier": {"type": "bag", "vocabulary_size": 64, "pair_buckets": 64},
            "training": training | weights,
        },
    }


@pytest.mark.parametrize(("straight", "turned"), [(9, 1), (1, 9)])
def test_of_two_sources_that_contradict_each_other_the_one_of_more_weight_is_learned(tmp_path, straight, turned):
    settings = RunConfig.model_validate(document(weights={"straight": straight, "turned": turned}))
    *_, result = train_reward_model(
        settings, settings.reward_model, role="reward_model", folder=tmp_path, accelerator=Accelerator(cpu=True)
    )
    measured = result.metrics["accuracy_by_source"]
    assert (measured["straight"] > 0.9) == (straight > turned)
    assert (measured["turned"] > 0.9) == (turned > straight)


def test_weights_and_repeat_exclude_each_other():
    with pytest.raises(ConfigError, match="weights and repeat both"):
        parse_config(document(weights={"straight": 1, "turned": 1}, repeat={"turned": 2}), where="here")
