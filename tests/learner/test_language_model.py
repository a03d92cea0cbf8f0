"""Perplexity by hand, and the two stages of next-token training on small corpora."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn
from transformers import AutoModelForCausalLM

from common.config import RunConfig
from common.corpus import load_corpus, split
from common.dialogue import whole
from common.errors import DataError
from common.records import Progress, StageResult
from common.text import load_tokenizer
from learner.language_model import perplexity, train_language_model

CATS = [f"the {a} cat {v} on the {n}" for a in ("big", "small", "old") for v in ("sits", "sleeps", "lies")
        for n in ("mat", "bed", "floor", "roof")]  # fmt: skip
DOGS = [f"a {a} dog {v} in my {n}" for a in ("loud", "quiet", "young") for v in ("runs", "plays", "digs")
        for n in ("yard", "park", "wood", "field")]  # fmt: skip


class Bigrams(nn.Module):
    """A language model whose next token depends on the last one only."""

    def __init__(self, probabilities):
        super().__init__()
        self.table = nn.Parameter(torch.tensor(probabilities).log())

    def forward(self, input_ids, use_cache):
        return SimpleNamespace(logits=self.table[input_ids])


def ids(*rows):
    return [whole(np.array(row, dtype=np.int32)) for row in rows]


def test_the_perplexity_of_a_uniform_model_is_its_vocabulary():
    uniform = Bigrams([[0.2] * 5] * 5)
    assert perplexity(uniform, ids([1, 2, 3], [4, 0, 0, 0, 2], [3, 1])) == pytest.approx(5)


def test_perplexity_by_hand_over_ragged_texts():
    """Trap 4: a table read one place off gives another number; padding's id 0 is a token like any other."""
    model = Bigrams([[0.5, 0.25, 0.25], [0.125, 0.375, 0.5], [0.7, 0.2, 0.1]])
    chosen = [0.25, 0.5, 0.7, 0.5, 0.5]  # 0→1→2→0 and 0→0→0
    expected = math.exp(-sum(map(math.log, chosen)) / 5)
    assert perplexity(model, ids([0, 1, 2, 0], [0, 0, 0])) == pytest.approx(expected)


def test_perplexity_weighs_tokens_alike_over_several_passes():
    """One long improbable text among 200 short probable ones: no mean of means."""
    model = Bigrams([[0.9, 0.1], [0.1, 0.9]])
    documents = ids(*[[0, 0]] * 200, [0, 1] * 100)
    expected = math.exp(-(200 * math.log(0.9) + 199 * math.log(0.1)) / 399)
    assert perplexity(model, documents) == pytest.approx(expected, rel=1e-5)


def config(**changed):
    training = {"data": ["cats"], "epochs": 12, "batch_sequences": 8, "optimizer": {"type": "adamw", "lr": 1e-2}}
    tree = {
        "name": "lm",
        "heldout_fraction": 0.25,
        "data": {"cats": {"type": "inline", "texts": CATS}, "dogs": {"type": "inline", "texts": DOGS}},
        "model": {
            "type": "fresh",
            "vocabulary_size": 64,
            "num_layers": 1,
            "hidden_size": 16,
            "num_heads": 2,
            "max_tokens": 64,
        },
        "pretrain": training | {"data": ["cats", "dogs"], "epochs": 6},
        "sft": training | {"data": ["dogs"], "epochs": 4},
    }
    return RunConfig.model_validate(tree | changed)


def run(settings, stage, folder, source=None):
    *progress, result = train_language_model(
        settings, getattr(settings, stage), source=source, folder=folder, accelerator=Accelerator(cpu=True)
    )
    assert all(isinstance(p, Progress) for p in progress)
    assert isinstance(result, StageResult)
    return result.metrics


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Pre-training on both domains, then fine-tuning on one of them."""
    folder = tmp_path_factory.mktemp("lm")
    pretrained = run(config(), "pretrain", folder / "pretrain")
    tuned = run(config(), "sft", folder / "sft", source=str(folder / "pretrain"))
    return SimpleNamespace(folder=folder, pretrained=pretrained, tuned=tuned)


def test_pretraining_learns_held_out_texts(stages):
    assert stages.pretrained["perplexity_before"] == {}  # a fresh model has none worth telling
    vocabulary = len(load_tokenizer(str(stages.folder / "pretrain")))
    for name in ("cats", "dogs"):
        assert stages.pretrained["perplexity_after"][name] < vocabulary / 3


def test_fine_tuning_reports_both_domains_before_and_after(stages):
    before, after = stages.tuned["perplexity_before"], stages.tuned["perplexity_after"]
    assert before.keys() == after.keys() == {"cats", "dogs"}
    assert before == pytest.approx(stages.pretrained["perplexity_after"], rel=1e-5)
    assert after["dogs"] < 0.95 * before["dogs"]
    assert after["cats"] > before["cats"]  # forgetting is seen


def test_the_exported_model_is_the_one_that_was_measured(stages):
    folder = str(stages.folder / "sft")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder).eval(), load_tokenizer(folder)
    texts = split(load_corpus(config().data["dogs"]), 0.25, "heldout").texts
    documents = ids(*[[*tokenizer(t)["input_ids"], tokenizer.eos_token_id] for t in texts])
    assert perplexity(model, documents) == pytest.approx(stages.tuned["perplexity_after"]["dogs"], rel=1e-5)


def test_counts_are_of_the_training_split(stages):
    tokens = {name: split(load_corpus(config().data[name]), 0.25).texts for name in ("cats", "dogs")}
    assert stages.pretrained["texts"] == sum(map(len, tokens.values()))
    assert stages.pretrained["tokens"] == sum(len(t.split()) + 1 for texts in tokens.values() for t in texts)
    assert stages.pretrained["texts_left_out"] == 0
    assert stages.pretrained["steps"] == round(6 * stages.pretrained["texts"] / 8)


def test_the_same_seed_gives_the_same_model_and_another_seed_another(tmp_path):
    short = config().pretrain.model_copy(update={"epochs": 1})
    results = [
        run(config(pretrain=short.model_dump(), seed=seed), "pretrain", tmp_path / str(i))["perplexity_after"]
        for i, seed in enumerate((0, 0, 1))
    ]
    assert results[0] == results[1] != results[2]


@pytest.mark.parametrize("drop", [True, False])
def test_texts_with_unknown_words_are_left_out_only_where_asked_for(tmp_path, stages, drop):
    """The model knows cats and dogs; every third text of the new set has a word that it lacks."""
    texts = [t + (" zebra" if i % 3 == 0 else "") for i, t in enumerate(CATS)]
    settings = config()
    sft = settings.sft.model_dump() | {"data": ["mixed"], "epochs": 1, "drop_unknown": drop}
    mixed = settings.model_dump() | {"sft": sft, "pretrain": settings.pretrain.model_dump()}
    mixed["data"]["mixed"] = {"type": "inline", "texts": texts}
    metrics = run(RunConfig.model_validate(mixed), "sft", tmp_path, source=str(stages.folder / "pretrain"))
    learned = split(load_corpus(RunConfig.model_validate(mixed).data["mixed"]), 0.25).texts
    unknown = sum("zebra" in t for t in learned)
    assert 0 < unknown < len(learned)
    assert metrics["texts_left_out"] == (unknown if drop else 0)
    assert metrics["texts"] == len(learned) - metrics["texts_left_out"]


def test_nothing_left_to_train_on_says_what_to_change(tmp_path, stages):
    settings = config().model_dump()
    settings["data"]["zebras"] = {"type": "inline", "texts": ["zebra one", "zebra two", "zebra three", "zebra four"]}
    settings["sft"] |= {"data": ["zebras"], "drop_unknown": True}
    with pytest.raises(DataError, match=r"zebras.*raise model\.vocabulary_size or set drop_unknown = false"):
        run(RunConfig.model_validate(settings), "sft", tmp_path, source=str(stages.folder / "pretrain"))
