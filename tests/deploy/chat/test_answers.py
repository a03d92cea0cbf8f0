"""Held-out prompts: as many as are asked for, or an error that says why there are fewer."""

import pytest

from common.config import RunConfig
from common.errors import DataError
from common.records import ModelPaths
from common.text import train_word_tokenizer
from deploy.chat.answers import heldout_prompts

TEXTS = [f"film number {i} is good and i like it" for i in range(40)]


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        (None, r"evaluate.prompts=90, but few, many hold only \d+ held-out texts"),
        (
            {"few": 9, "many": 1},
            r"evaluate.prompts=90, but drawn by ppo.weights a held-out text .* again after \d+ draws",
        ),
    ],
)
def test_too_few_prompts_are_told_with_their_reason(tmp_path, weights, said):
    train_word_tokenizer(TEXTS, vocabulary_size=64, max_tokens=32).save_pretrained(tmp_path)
    tree = {
        "name": "answers",
        "heldout_fraction": 0.4,
        "data": {"few": {"type": "inline", "texts": TEXTS[:10]}, "many": {"type": "inline", "texts": TEXTS[10:]}},
        "model": {"type": "pretrained", "path": "none"},
        "reward_service": {"scorers": [{"type": "function", "callable": "a:b"}]},
        "ppo": {"data": ["few", "many"], "updates": 1, "prompt_tokens": {"min": 1, "max": 4}},
    }
    if weights:
        tree["ppo"]["weights"] = weights
    with pytest.raises(DataError, match=said):
        heldout_prompts(RunConfig.model_validate(tree), ModelPaths(policy=str(tmp_path), reward_model=None), 90)
