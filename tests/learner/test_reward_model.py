"""Labels to scores: the naive-Bayes start by hand, calibration by hand, and training on sets that can be told apart."""

import math

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from common.classifiers import BagClassifier, BagConfig, load_classifier
from common.config import RunConfig
from common.corpus import load_corpus, split
from common.errors import ConfigError
from common.text import load_tokenizer
from learner.calibration import expected_calibration_error
from learner.reward_model import start_from_naive_bayes, train_reward_model

OPTIMIZER = {"type": "adamw", "lr": 1e-2}
BAG = {"type": "bag", "vocabulary_size": 400, "pair_buckets": 4096}
CONV = {"type": "conv", "vocabulary_size": 400, "embedding_size": 8, "num_filters": 8}


def test_the_naive_bayes_start_by_hand():
    """Word counts are of documents, plus one; what one document alone holds stays at 0."""
    model = BagClassifier(BagConfig(vocab_size=6, pair_buckets=64))
    documents = [np.array(d, dtype=np.int32) for d in ([1, 2, 2, 2], [1, 3], [1, 2, 3], [4, 1], [5])]
    labels = np.array([1, 1, 1, 0, 0])
    start_from_naive_bayes(model, documents, labels, scale=0.5)
    positive = {0: 1, 1: 1 + 3, 2: 1 + 2, 3: 1 + 2, 4: 1, 5: 1}
    negative = {0: 1, 1: 1 + 1, 2: 1, 3: 1, 4: 1 + 1, 5: 1 + 1}
    seen = {1: 4, 2: 2, 3: 2, 4: 1, 5: 1, 0: 0}
    for word, times in seen.items():
        ratio = math.log(positive[word] / sum(positive.values()) / (negative[word] / sum(negative.values())))
        assert model.words.weight[word].item() == pytest.approx(0.5 * ratio if times >= 2 else 0.0, rel=1e-6)

    def bucket(a, b):
        return (a * 1_000_003 + b * 7_919) % 64

    pairs = [{bucket(1, 2), bucket(2, 2)}, {bucket(1, 3)}, {bucket(1, 2), bucket(2, 3)}, {bucket(4, 1)}, set()]
    pos, neg = np.ones(64), np.ones(64)
    for found, label in zip(pairs, labels, strict=True):
        for b in found:
            (pos if label else neg)[b] += 1
    expected = 0.5 * (np.log(pos / pos.sum()) - np.log(neg / neg.sum()))
    expected[pos + neg - 2 < 2] = 0
    assert expected.any()
    np.testing.assert_allclose(model.pairs.weight.detach().numpy()[:, 0], expected, rtol=1e-6)


def test_the_calibration_error_by_hand():
    confidence = np.array([0.95, 0.95, 0.65, 0.65], dtype=np.float32)
    right = np.array([True, False, True, True])
    assert expected_calibration_error(confidence, right) == pytest.approx(0.5 * 0.45 + 0.5 * 0.35)


def test_gaps_of_opposite_sign_do_not_cancel_between_bins_and_do_inside_one():
    two_bins = expected_calibration_error(np.array([0.6, 0.9], dtype=np.float32), np.array([True, False]))
    assert two_bins == pytest.approx(0.5 * 0.4 + 0.5 * 0.9)
    one_bin = expected_calibration_error(np.array([0.75, 0.75, 0.75, 0.75]), np.array([True, True, True, False]))
    assert one_bin == pytest.approx(0)


def test_certainty_falls_into_the_last_bin():
    assert expected_calibration_error(np.array([1.0, 1.0]), np.array([True, True])) == 0
    assert expected_calibration_error(np.array([1.0, 0.92]), np.array([False, True])) == pytest.approx(0.96 - 0.5)


def reviews(n=80):
    """Sentences that one word decides; every text has a word of its own, by which it is known again."""
    rng = np.random.default_rng(0)
    filler = ["film", "movie", "story", "cast", "plot", "scene", "with", "and", "one"]
    texts, labels = [], []
    for i in range(n):
        words = [*rng.choice(filler, 5), "good" if i % 2 else "bad", f"mark{chr(97 + i // 26)}{chr(97 + i % 26)}"]
        texts.append(" ".join(rng.permutation(words)))
        labels.append(i % 2)
    return texts, labels


TEXTS, LABELS = reviews()


def config(classifier=BAG, **training):
    table = {"data": ["reviews"], "epochs": 20, "batch_sequences": 16, "optimizer": OPTIMIZER}
    return RunConfig.model_validate(
        {
            "name": "rm",
            "heldout_fraction": 0.25,
            "data": {"reviews": {"type": "inline", "texts": TEXTS, "labels": LABELS}},
            "model": {"type": "pretrained", "path": "unused"},
            "reward_model": {"classifier": classifier, "training": table | training},
        }
    )


def run(settings, folder, role="reward_model"):
    *_, result = train_reward_model(
        settings, settings.reward_model, role=role, folder=folder, accelerator=Accelerator(cpu=True)
    )
    return result.metrics


def marks(texts):
    return {word for text in texts for word in text.split() if word.startswith("mark")}


def known_marks(folder):
    return {word for word in load_tokenizer(str(folder)).get_vocab() if word.startswith("mark")}


@pytest.mark.parametrize("classifier", [BAG, CONV])
def test_a_set_that_can_be_told_apart_is_told_apart(tmp_path, classifier):
    metrics = run(config(classifier), tmp_path / "rm")
    assert metrics["accuracy"] == 1
    assert metrics["accuracy_by_source"] == {"reviews": 1}
    assert metrics["heldout_texts"] == len(TEXTS) - metrics["texts"]
    assert 0 <= metrics["calibration_error"] < 0.5
    model, tokenizer = load_classifier(str(tmp_path / "rm")), load_tokenizer(str(tmp_path / "rm"))
    encoded = tokenizer(["a good film", "a bad film"], return_tensors="pt")
    with torch.no_grad():
        logits = model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits
    assert logits[0, 1] > 0 > logits[1, 1]  # the logit of the positive class is the score


def test_labels_that_are_turned_round_turn_the_scores_round(tmp_path):
    settings = config().model_dump()
    settings["data"]["reviews"]["labels"] = [1 - label for label in LABELS]
    run(RunConfig.model_validate(settings), tmp_path / "rm")
    model, tokenizer = load_classifier(str(tmp_path / "rm")), load_tokenizer(str(tmp_path / "rm"))
    encoded = tokenizer(["a good film"], return_tensors="pt")
    assert model(input_ids=encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits[0, 1] < 0


def test_labels_that_say_nothing_teach_nothing(tmp_path):
    """The control: on shuffled labels held-out accuracy stays near a coin's."""
    settings = config().model_dump()
    settings["data"]["reviews"]["labels"] = np.random.default_rng(1).permutation(LABELS).tolist()
    assert run(RunConfig.model_validate(settings), tmp_path / "rm")["accuracy"] < 0.8


def test_the_halves_are_disjoint_and_neither_meets_the_held_out_texts(tmp_path):
    """The vocabulary tells who has read what."""
    halves = {half: run(config(half=half, epochs=1), tmp_path / half) for half in ("a", "b", "all")}
    heldout = marks(split(load_corpus(config().data["reviews"]), 0.25, "heldout").texts)
    a, b, everything = (known_marks(tmp_path / half) for half in ("a", "b", "all"))
    assert a
    assert b
    assert not a & b
    assert a | b == everything
    assert not everything & heldout
    assert everything | heldout == marks(TEXTS)
    assert halves["a"]["texts"] + halves["b"]["texts"] == halves["all"]["texts"]
    assert halves["a"]["heldout_texts"] == halves["b"]["heldout_texts"] == len(heldout)


def test_the_same_seed_gives_the_same_classifier_and_another_role_another(tmp_path):
    weights = []
    for i, role in enumerate(("reward_model", "reward_model", "judge")):
        run(config(CONV, epochs=1), tmp_path / str(i), role)
        weights.append(load_classifier(str(tmp_path / str(i))).conv.weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_a_classifier_of_two_classes_refuses_three(tmp_path):
    settings = config().model_dump()
    settings["data"]["reviews"] |= {"num_labels": 3, "labels": [*LABELS[:-1], 2]}
    with pytest.raises(ConfigError, match='classifier type "bag" tells two classes apart, got 3'):
        run(RunConfig.model_validate(settings), tmp_path / "rm")


@pytest.mark.parametrize("favourite", ["straight", "turned"])
def test_of_two_sources_that_contradict_each_other_the_one_of_more_weight_is_learned(tmp_path, favourite):
    settings = config(data=["reviews"], naive_bayes_scale=0.0, epochs=30).model_dump()
    straight = settings["data"].pop("reviews")
    settings["data"] = {"straight": straight, "turned": straight | {"labels": [1 - label for label in LABELS]}}
    other = {"straight": "turned", "turned": "straight"}[favourite]
    weights = {favourite: 9.0, other: 1.0}
    settings["reward_model"]["training"] |= {"data": ["straight", "turned"], "weights": weights}
    metrics = run(RunConfig.model_validate(settings), tmp_path / "rm")
    assert metrics["accuracy_by_source"] == {favourite: 1, other: 0}
