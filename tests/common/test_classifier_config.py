"""Classifiers and their training in the configuration: what follows from what, and what is refused."""

import tomllib

import pytest
from pydantic import ValidationError

from common.classifier_config import LabelTraining, PreferenceTraining, RewardModelConfig
from common.config import RunConfig
from common.config_file import parse_config, to_toml

OPTIMIZER = {"type": "adamw", "lr": 1e-3}
PAIRS = {
    "type": "inline",
    "rows": {"type": "preferences"},
    "records": [{"chosen": "good", "rejected": "bad"}, {"chosen": "fine", "rejected": "dull"}],
}
FILE = {"type": "files", "paths": ["reviews.csv"], "label_column": "label"}
LABEL_PAIRS = FILE | {"rows": {"type": "label_pairs"}}


def table(kind, data, **settings):
    return {"type": kind, "data": [data], "optimizer": OPTIMIZER} | settings


def document(reward_model=None, judge=None, **settings):
    bag = {"type": "bag"}
    made = {
        "name": "rm",
        "data": {"pairs": PAIRS, "file": FILE, "label_pairs": LABEL_PAIRS},
        "model": {"type": "pretrained", "path": "unused"},
        "reward_model": {"classifier": bag, "training": reward_model or table("preferences", "pairs")},
    }
    if judge is not None:
        made["judge"] = {"classifier": bag, "training": judge}
    return made | settings


def error(**tables):
    with pytest.raises(ValidationError) as caught:
        RunConfig.model_validate(document(**tables))
    return str(caught.value)


def test_training_without_a_type_is_on_labels():
    training = {"data": ["reviews"], "optimizer": OPTIMIZER}
    made = RewardModelConfig.model_validate({"classifier": {"type": "bag"}, "training": training})
    assert isinstance(made.training, LabelTraining)
    assert made.positive_class == 1


def test_training_on_preferences_leaves_one_logit():
    config = RunConfig.model_validate(document())
    assert isinstance(config.reward_model.training, PreferenceTraining)
    assert config.reward_model.positive_class == 0
    changed = document()
    changed["reward_model"]["positive_class"] = 1
    with pytest.raises(ValueError, match="positive_class=1, but training on preferences gives one logit, of index 0"):
        RunConfig.model_validate(changed)


@pytest.mark.parametrize("source", ["pairs", "label_pairs"])
def test_preferences_come_back_from_the_written_configuration(source):
    config = RunConfig.model_validate(document(table("preferences", source, half="a", repeat={source: 2})))
    assert parse_config(tomllib.loads(to_toml(config)), where="again") == config


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"reward_model": table("labels", "pairs")}, "whose rows are preferences, but it reads texts or label_pairs"),
        (
            {"reward_model": table("preferences", "file")},
            "whose rows are texts, but it reads preferences or label_pairs",
        ),
        (
            {"sft": {"data": ["pairs"], "optimizer": OPTIMIZER}},
            "sft.data names 'pairs', whose rows are preferences, but it reads texts",
        ),
        (
            {"reward_model": table("preferences", "pairs", repeat={"other": 2})},
            "repeat names 'other', which is not in data: pairs",
        ),
        (
            {"data": {"pairs": PAIRS | {"rows": {"type": "preferences", "ranking_column": "r", "margin_column": "m"}}}},
            "margin_column='m' is the margin of a pair, but ranking_column='r' ranks K responses",
        ),
        ({"data": {"pairs": LABEL_PAIRS | {"label_column": None}}}, "makes pairs of labels; set label_column"),
        (
            {"data": {"pairs": {"type": "inline", "texts": ["a"], "rows": {"type": "label_pairs"}}}},
            "makes pairs of labels; set labels",
        ),
        (
            {"data": {"pairs": FILE | {"rows": {"type": "preferences"}}}},
            "label_column is of texts, but rows says that these are preferences",
        ),
    ],
)
def test_what_does_not_fit_together_is_refused(tables, says):
    assert says in error(**tables)


@pytest.mark.parametrize("halves", [("all", "all"), ("a", "a"), ("all", "b")])
def test_pairs_of_labels_and_a_judge_of_the_same_labels_need_different_halves(halves):
    """However they are cut, and whatever their rows are, the documents are the same."""
    a, b = halves
    message = error(reward_model=table("preferences", "label_pairs", half=a), judge=table("labels", "file", half=b))
    assert "reward_model and judge train on the same labels of file" in message
    RunConfig.model_validate(document(table("preferences", "label_pairs", half="a"), table("labels", "file", half="b")))


def test_a_classifier_that_starts_from_the_policy_reads_no_more_than_the_policy_can():
    pretrain = {"data": ["file"], "max_tokens": 32, "optimizer": OPTIMIZER}
    model = {"type": "fresh", "max_tokens": 32}
    made = document(model=model, pretrain=pretrain)
    made["reward_model"]["classifier"] = {"type": "policy"}
    with pytest.raises(
        ValueError, match=r"reward_model.max_tokens=256 exceeds model.max_tokens=32, and its classifier"
    ):
        RunConfig.model_validate(made)
    made["reward_model"]["max_tokens"] = 32
    RunConfig.model_validate(made)
