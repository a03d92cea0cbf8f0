"""Which data a stage may read, and by what weights."""

import pytest

from common.config_file import parse_config
from common.errors import ConfigError

OPTIMIZER = {"type": "adamw", "lr": 1e-3}


def config(*, pretrain=(), sft=None, reward_model=None, ppo=None):
    labels = {"texts": ["a", "b"], "labels": [0, 1]}
    tree = {
        "name": "x",
        "data": {
            "texts": {"type": "inline", **labels},
            "others": {"type": "inline", **labels},
            "asked": {
                "type": "inline",
                "rows": {"type": "demonstrations"},
                "records": [{"prompt": "a", "response": "b"}],
            },
        },
        "model": {"type": "fresh"},
        "pretrain": {"data": ["texts"], "optimizer": OPTIMIZER} | dict(pretrain),
        "reward_model": {
            "classifier": {"type": "bag"},
            "training": {"data": ["texts"], "optimizer": OPTIMIZER} | (reward_model or {}),
        },
    }
    tree |= {} if sft is None else {"sft": {"optimizer": OPTIMIZER} | sft}
    tree |= {} if ppo is None else {"ppo": {"updates": 1} | ppo}
    return parse_config(tree, where="here")


def test_demonstrations_are_for_fine_tuning_and_ppo():
    made = config(sft={"data": ["asked", "texts"]}, ppo={"data": ["asked"]})
    assert made.data_used()["sft"] == ["asked", "texts"]


@pytest.mark.parametrize(
    ("stages", "said"),
    [
        ({"pretrain": {"data": ["asked"]}}, "pretrain.data names 'asked', whose rows are demonstrations"),
        ({"reward_model": {"data": ["asked"]}}, r"reward_model\.training\.data names 'asked', whose rows are demonst"),
        ({"sft": {"data": ["texts"], "weights": {"asked": 1}}}, "weights names 'asked', which is not in data: texts"),
        ({"ppo": {"data": ["texts", "asked"], "weights": {"asked": 1}}}, "weights gives none to texts; give every"),
        ({"ppo": {"data": ["texts"], "weights": {"texts": 0}}}, "greater than 0"),
        ({"sft": {"data": ["texts"], "weights": {"texts": float("inf")}}}, "finite"),
        (
            {
                "reward_model": {
                    "data": ["texts", "others"],
                    "weights": {"texts": 1, "others": 2},
                    "repeat": {"texts": 2},
                }
            },
            "weights and repeat both",
        ),
    ],
)
def test_data_that_a_stage_cannot_read_and_weights_that_say_nothing_are_refused(stages, said):
    with pytest.raises(ConfigError, match=said):
        config(**stages)
