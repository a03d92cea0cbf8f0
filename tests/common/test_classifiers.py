"""Our classifiers: on disk and back by Hugging Face's own road, and blind to padding."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModelForSequenceClassification

from common.classifiers import (
    BagClassifier,
    BagConfig,
    ConvConfig,
    ConvTextClassifier,
    load_classifier,
    register_classifiers,
)
from common.weights import buffer_hash, flatten

V = 50


def bag(seed=0):
    model = BagClassifier(BagConfig(vocab_size=V, pair_buckets=32))
    noise = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data = torch.randn(parameter.shape, generator=noise)
    return model.eval()


def conv(kernel_words=3, dropout=0.5, seed=0):
    torch.manual_seed(seed)
    config = ConvConfig(vocab_size=V, embedding_size=6, num_filters=10, kernel_words=kernel_words, dropout=dropout)
    model = ConvTextClassifier(config)
    model.words.weight.data.normal_()
    model.embedding.weight.data.normal_()
    model.head.weight.data.normal_()
    return model.eval()


MODELS = {"bag": bag(), "conv-1": conv(1), "conv-2": conv(2), "conv-3": conv(3), "conv-5": conv(5)}
every_model = pytest.mark.parametrize("model", MODELS.values(), ids=MODELS)


@torch.no_grad()
def logits_of(model, rows, extra=0, pad_id=0):
    width = max(max(map(len, rows)) + extra, 1)
    ids = torch.full((len(rows), width), pad_id)
    mask = torch.zeros(len(rows), width, dtype=torch.long)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row, dtype=torch.long)
        mask[i, : len(row)] = 1
    return model(input_ids=ids, attention_mask=mask).logits


@every_model
@settings(max_examples=20, deadline=None)
@given(
    rows=st.lists(st.lists(st.integers(0, V - 1), max_size=12), min_size=1, max_size=5),
    extra=st.integers(0, 9),
    pad_id=st.integers(0, V - 1),
)
def test_padding_and_neighbours_change_no_logit(model, rows, extra, pad_id):
    # Trap 16: whatever id the padding holds.
    alone = torch.cat([logits_of(model, [row]) for row in rows])
    torch.testing.assert_close(logits_of(model, rows, extra, pad_id), alone, atol=1e-5, rtol=1e-5)


@every_model
def test_every_word_counts(model):
    text = [5, 9, 11, 7, 3]
    expected = logits_of(model, [text])
    changed = 0
    for place in range(len(text)):
        other = [*text[:place], 40, *text[place + 1 :]]
        changed += not torch.allclose(logits_of(model, [other]), expected, atol=1e-4)
    assert changed == len(text)


@every_model
def test_an_empty_text_and_a_single_word_are_finite(model):
    logits = logits_of(model, [[], [7], [7, 8]])
    assert torch.isfinite(logits).all()
    torch.testing.assert_close(logits[0], logits_of(model, [[]], extra=6)[0])


def test_a_bag_gives_an_empty_text_its_bias_and_a_text_the_sum_of_its_words_and_pairs():
    model = MODELS["bag"]
    z = model.bias.item()
    assert logits_of(model, [[]])[0].tolist() == pytest.approx([-z / 2, z / 2])
    ids = [5, 9, 5]
    z += sum(model.words.weight[i].item() for i in ids)
    z += sum(model.pairs.weight[b].item() for b in model.pair_ids(torch.tensor([ids]))[0].tolist())
    assert logits_of(model, [ids])[0].tolist() == pytest.approx([-z / 2, z / 2], abs=1e-5)


def test_a_pair_knows_the_order_of_its_words():
    pairs = BagClassifier(BagConfig(vocab_size=V, pair_buckets=2**18)).pair_ids(torch.tensor([[5, 9, 5]]))[0]
    assert pairs[0] != pairs[1]
    assert 0 <= int(pairs.min()) <= int(pairs.max()) < 2**18


@pytest.mark.parametrize("kind", ["bag", "conv-2", "conv-3"])
def test_a_classifier_comes_back_from_disk_through_hugging_faces_own_loader(kind, tmp_path):
    model = MODELS[kind]
    model.save_pretrained(tmp_path)
    register_classifiers()
    register_classifiers()  # twice is no error
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    shape = (
        ("vocab_size", "pair_buckets") if kind == "bag" else ("vocab_size", "embedding_size", "kernel_words", "dropout")
    )
    assert [getattr(loaded.config, name) for name in shape] == [getattr(model.config, name) for name in shape]
    assert buffer_hash(flatten(loaded)[0]) == buffer_hash(flatten(model)[0])
    rows = [[1, 2, 3], [4], []]
    assert torch.equal(logits_of(loaded.eval(), rows), logits_of(model, rows))


def test_a_loaded_classifier_has_its_dropout_off(tmp_path):
    conv(dropout=0.5).save_pretrained(tmp_path)
    loaded = load_classifier(str(tmp_path))
    assert not loaded.training
    assert loaded.config.dropout == 0.5
    loaded.train()
    assert torch.equal(logits_of(loaded, [[1, 2, 3]]), logits_of(loaded, [[1, 2, 3]]))


def test_fresh_classifiers_have_two_classes_and_a_fresh_bag_is_undecided():
    assert BagConfig().num_labels == ConvConfig().num_labels == 2
    fresh = BagClassifier(BagConfig(vocab_size=V, pair_buckets=32))
    assert logits_of(fresh, [[1, 2, 3]]).tolist() == [[0.0, 0.0]]


def test_gradients_reach_the_words_of_a_text_and_no_padding():
    model = conv()
    ids = torch.tensor([[5, 9, 7, 0, 0]])
    out = model(input_ids=ids, attention_mask=torch.tensor([[1, 1, 1, 0, 0]])).logits
    out[0, 1].backward()
    touched = np.flatnonzero(model.embedding.weight.grad.abs().sum(-1).numpy()).tolist()
    assert touched == [5, 7, 9]
