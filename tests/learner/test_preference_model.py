"""Rankings to scores: what can be told apart is, by every kind of classifier; and training reads what serving reads."""

import json

import numpy as np
import pytest
import torch
from accelerate import Accelerator

from common.classifiers import ConvConfig, ConvTextClassifier, load_classifier
from common.config import RunConfig
from common.preferences import load_preferences
from common.records import Identity, Prompt, Rollout
from common.text import encode, load_classifier_tokenizer, train_word_tokenizer
from learner.preference_model import score_texts
from learner.reward_model import train_reward_model
from reward_service.mixture import text_of
from reward_service.model_scorer import TextClassifier

BAG = {"type": "bag", "vocabulary_size": 400, "pair_buckets": 4096}
CONV = {"type": "conv", "vocabulary_size": 400, "embedding_size": 8, "num_filters": 8}
WORDS = ["awful", "dull", "fair", "good", "superb"]
"""From the worst to the best."""


def letters(number):
    """Two letters, of which a tokenizer makes no numbers."""
    return chr(97 + number // 26) + chr(97 + number % 26)


def records(num=120, k=2, seed=0):
    """Rankings that one word of each response decides; every response has a mark of its own."""
    rng = np.random.default_rng(seed)
    filler = ["film", "movie", "story", "cast", "plot", "scene", "with", "and", "one"]
    rows = []
    for i in range(num):
        chosen = sorted(rng.choice(len(WORDS), k, replace=False), reverse=True)
        ranked = [
            " ".join(
                rng.permutation([*rng.choice(filler, rng.integers(3, 8)), WORDS[j], f"mark{letters(i)}{letters(j)}"])
            )
            for j in chosen
        ]
        rows.append({"prompt": f"opening {letters(i)}", "chosen": ranked[0], "rejected": ranked[1], "ranked": ranked})
    return rows


def config(rows=None, classifier=BAG, source=None, **training):
    table = {"type": "preferences", "data": ["pairs"], "epochs": 25, "batch_rankings": 16}
    table["optimizer"] = {"type": "adamw", "lr": 1e-2}
    ranked = {"type": "preferences", "prompt_column": "prompt"}
    return RunConfig.model_validate(
        {
            "name": "rm",
            "heldout_fraction": 0.25,
            "data": {"pairs": {"type": "inline", "rows": ranked | (source or {}), "records": rows or records()}},
            "model": {"type": "pretrained", "path": "unused"},
            "reward_model": {"classifier": classifier, "max_tokens": 32, "training": table | training},
        }
    )


def run(settings, folder, policy=None):
    *_, result = train_reward_model(
        settings,
        settings.reward_model,
        role="reward_model",
        folder=folder,
        accelerator=Accelerator(cpu=True),
        policy=policy,
    )
    return result.metrics


def scores_of(folder, texts):
    return score_texts(load_classifier(str(folder)), load_classifier_tokenizer(str(folder)), texts, 32)


@pytest.fixture
def policy(tiny_policy, tmp_path):
    """A causal language model on disk, with a tokenizer that knows the words of the rankings."""
    texts = [row["prompt"] + " " + text for row in records() for text in row["ranked"]]
    tokenizer = train_word_tokenizer(texts, vocabulary_size=23, max_tokens=64)
    model = tiny_policy(sharpness=1.0)
    model.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    return str(tmp_path / "policy")


@pytest.mark.parametrize(("classifier", "lr"), [(BAG, 1e-2), (CONV, 1e-2), ({"type": "policy"}, 3e-3)])
def test_what_is_preferred_gets_the_higher_score_on_held_out_rankings(tmp_path, classifier, lr, policy):
    optimizer = {"type": "adamw", "lr": lr}
    metrics = run(config(records(240), classifier=classifier, optimizer=optimizer), tmp_path / "rm", policy)
    assert metrics["accuracy"] > 0.8
    assert metrics["accuracy_by_source"] == {"pairs": metrics["accuracy"]}
    assert metrics["heldout_pairs"] == metrics["heldout_rankings"] == 240 - metrics["rankings"]
    scores = scores_of(tmp_path / "rm", [f"a {word} film" for word in WORDS])
    assert scores[-1] > scores[0]
    assert load_classifier(str(tmp_path / "rm")).config.num_labels == 1


def test_rankings_of_several_lengths_teach_the_whole_order(tmp_path):
    rows = records(40, 2) + records(40, 4, seed=1) + records(40, 5, seed=2)
    metrics = run(config(rows, source={"ranking_column": "ranked"}), tmp_path / "rm")
    assert metrics["accuracy"] > 0.9
    assert metrics["heldout_pairs"] > metrics["heldout_rankings"]
    scores = scores_of(tmp_path / "rm", [f"a {word} film" for word in WORDS])
    assert (np.diff(scores) > 0).all()


def test_pairs_that_say_nothing_teach_nothing(tmp_path):
    """The control: where chance decides which response is chosen, held-out accuracy stays near a coin's."""
    rng = np.random.default_rng(3)
    rows = [
        row | ({"chosen": row["rejected"], "rejected": row["chosen"]} if rng.integers(2) else {}) for row in records()
    ]
    assert 0.25 < run(config(rows, epochs=5), tmp_path / "rm")["accuracy"] < 0.75


def test_a_classifier_that_is_there_already_gets_a_new_head_of_one_logit(tmp_path):
    texts = [text for row in records() for text in row["ranked"]]
    tokenizer = train_word_tokenizer(texts, vocabulary_size=400, max_tokens=32)
    two_logits = ConvTextClassifier(ConvConfig(vocab_size=len(tokenizer), num_labels=2))
    for part in (tokenizer, two_logits):
        part.save_pretrained(tmp_path / "first")
    metrics = run(config(classifier={"type": "pretrained", "path": str(tmp_path / "first")}), tmp_path / "rm")
    assert metrics["accuracy"] > 0.9
    started, trained = (load_classifier(str(tmp_path / name)) for name in ("first", "rm"))
    assert (started.head.out_features, trained.head.out_features) == (2, 1)


def test_margins_draw_scores_apart_and_centring_draws_their_mean_to_zero(tmp_path):
    rows = [row | {"margin": 4.0} for row in records()]
    plain = run(config(rows, epochs=10), tmp_path / "plain")
    apart = run(config(rows, source={"margin_column": "margin"}, epochs=10), tmp_path / "apart")
    ignored = run(config(rows, source={"margin_column": "margin"}, epochs=10, margin_coef=0), tmp_path / "ignored")
    assert apart["score_gap"] > 1.05 * plain["score_gap"]
    assert ignored["score_gap"] == plain["score_gap"]
    strong = run(config(rows, epochs=10, centring_coef=1.0), tmp_path / "strong")
    assert abs(strong["score_mean"]) < max(abs(plain["score_mean"]), 0.2)


def test_a_score_that_follows_length_is_seen(tmp_path):
    """The control of the length-bias check: of two texts alike in all else, the longer one is preferred."""
    rows = [
        {"prompt": f"opening {i}", "chosen": "so " * (6 + i % 5) + f"m{i}", "rejected": "so " * (1 + i % 5) + f"n{i}"}
        for i in range(80)
    ]
    metrics = run(config(rows), tmp_path / "rm")
    assert metrics["length_spearman"] > 0.7
    assert metrics["accuracy_longer"] > 0.9
    assert metrics["accuracy_shorter"] is None


def test_training_sees_the_text_that_the_reward_service_builds(tmp_path):
    """A policy's ids of prompt and response, decoded as they are served, are the texts of the loader."""
    rows = records(20)
    settings = config(rows)
    loaded = load_preferences(settings.data["pairs"], 0.25)
    tokenizer = train_word_tokenizer(loaded.texts, vocabulary_size=400, max_tokens=64)
    for row in rows:
        prompt, response = (encode(tokenizer, [row[name]])[0] for name in ("prompt", "chosen"))
        whole = text_of(
            tokenizer,
            Prompt(0, 0, prompt, 8),
            Rollout(0, 0, 0, 1, response, np.zeros(len(response)), Identity(0, 0), "stop"),
        ).whole
        if f"{row['prompt']} {row['chosen']}" in loaded.texts:
            assert whole in loaded.texts
    run(config(rows, epochs=1), tmp_path / "rm")
    classifier = TextClassifier(
        load_classifier(str(tmp_path / "rm")),
        load_classifier_tokenizer(str(tmp_path / "rm")),
        positive_class=settings.reward_model.positive_class,
        max_tokens=32,
        batch_sequences=4,
    )
    served, chances = classifier.judge(loaded.texts)
    np.testing.assert_allclose(served, scores_of(tmp_path / "rm", loaded.texts), atol=1e-6)
    np.testing.assert_allclose(chances, 1 / (1 + np.exp(-served)))


def test_the_same_seed_gives_the_same_scores(tmp_path):
    for name in ("a", "b"):
        run(config(classifier=CONV, epochs=1), tmp_path / name)
    first, second = (load_classifier(str(tmp_path / name)).state_dict() for name in ("a", "b"))
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_the_halves_of_the_rankings_are_disjoint(tmp_path):
    known = []
    for half in ("a", "b"):
        run(config(half=half, epochs=1), tmp_path / half)
        vocabulary = json.loads((tmp_path / half / "tokenizer.json").read_text())["model"]["vocab"]
        known.append({word for word in vocabulary if word.startswith("mark")})
    assert known[0]
    assert known[1]
    assert not known[0] & known[1]
