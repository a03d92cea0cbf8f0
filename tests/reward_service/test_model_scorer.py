"""A classifier's score: a text's own, whoever else is in the batch, in the classifier's own tokens; never made up."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from common.records import RolloutChunk
from reward_service.model_scorer import ModelScorer, TextClassifier
from reward_service.scorers import Failure

WORDS = ["good", "bad", "film", "story", "the", "a", "is", "not", "very", "i", "like", "hate", "it", "cast", "plot"]
KINDS = ["bag", "conv", "bert"]
PAIRS = [("the film", "is good"), ("i", "hate the plot very"), ("a story", "not bad"), ("it is", "a very good cast")]


def texts_of(lengths, seed=0):
    rng = random.Random(seed)
    return [" ".join(rng.choices(WORDS, k=n)) for n in lengths]


TEXTS = texts_of((3, 1, 17, 2, 30, 8, 8, 1, 12))


@torch.no_grad()
def plain_logits(classifier, text):
    """The model alone, on one text without padding, by its own tokenizer's own call."""
    ids = torch.tensor([classifier.tokenizer(text)["input_ids"]])
    return classifier.model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0].double()


@pytest.mark.parametrize("kind", KINDS)
def test_a_score_is_the_positive_logit_of_the_text_alone(classifier_of, kind):
    # Trap 16, and its off-by-one cousin: the right index of the right row.
    classifier = classifier_of(kind)
    logits, probabilities = classifier.judge(TEXTS)
    expected = torch.stack([plain_logits(classifier, text) for text in TEXTS])
    np.testing.assert_allclose(logits, expected[:, 1], atol=1e-5)
    np.testing.assert_allclose(probabilities, expected.softmax(-1)[:, 1], atol=1e-6)
    assert np.ptp(logits) > 0.1, "all texts score alike: nothing was tested"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_sequences", [1, 2, 3, 100])
def test_a_score_does_not_depend_on_the_size_of_the_batch(classifier_of, kind, batch_sequences):
    # Trap 16.
    expected = classifier_of(kind, batch_sequences=4).judge(TEXTS)
    np.testing.assert_allclose(classifier_of(kind, batch_sequences=batch_sequences).judge(TEXTS), expected, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15, deadline=None)
@given(order=st.permutations(range(len(TEXTS))), keep=st.integers(1, len(TEXTS)))
def test_a_score_does_not_depend_on_order_or_neighbours(classifier_of, kind, order, keep):
    # Trap 16.
    classifier = classifier_of(kind)
    expected, _ = classifier.judge(TEXTS)
    chosen = order[:keep]
    found, _ = classifier.judge([TEXTS[i] for i in chosen])
    np.testing.assert_allclose(found, expected[chosen], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_short_text_next_to_a_long_one_scores_as_alone(classifier_of, kind):
    # Trap 16: 29 columns of padding.
    classifier = classifier_of(kind, batch_sequences=2)
    alone, _ = classifier.judge(["good"])
    beside, _ = classifier.judge([texts_of([30])[0], "good"])
    assert beside[1] == pytest.approx(alone[0], abs=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_an_empty_text_has_a_finite_score_and_disturbs_nobody(classifier_of, kind):
    classifier = classifier_of(kind)
    logits, _ = classifier.judge(["", "good film", "bad"])
    assert np.isfinite(logits).all()
    np.testing.assert_allclose(logits[1:], classifier.judge(["good film", "bad"])[0], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_a_long_text_is_cut_to_the_classifiers_own_limit(classifier_of, kind):
    classifier = classifier_of(kind, max_tokens=6)
    special = 2 if kind == "bert" else 0
    words = texts_of([30])[0].split()
    cut, whole = classifier.judge([" ".join(words[: 6 - special]), " ".join(words)])[0]
    assert cut == pytest.approx(whole, abs=1e-6)


def test_dropout_of_a_classifier_is_off(classifier_of):
    model = classifier_of("conv").model.train()
    conv = TextClassifier(model, classifier_of("conv").tokenizer, positive_class=1, max_tokens=48, batch_sequences=4)
    assert np.array_equal(conv.judge(TEXTS)[0], conv.judge(TEXTS)[0])


@pytest.mark.parametrize(("kind", "classes"), [("bag", 2), ("conv", 2), ("bert", 3)])
def test_a_positive_class_that_does_not_exist_is_an_error(classifier_of, kind, classes):
    classifier_of(kind, positive_class=classes - 1)
    with pytest.raises(
        ValueError, match=rf"positive_class={classes}, but the classifier has classes 0 … {classes - 1}"
    ):
        classifier_of(kind, positive_class=classes)


@pytest.mark.parametrize("positive_class", [0, 1, 2])
def test_the_score_is_the_logit_of_the_class_that_was_named(classifier_of, positive_class):
    classifier = classifier_of("bert", positive_class=positive_class)
    found, _ = classifier.judge(TEXTS)
    np.testing.assert_allclose(found, [plain_logits(classifier, t)[positive_class] for t in TEXTS], atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_rollouts_are_scored_as_text_in_the_classifiers_own_tokens(classifier_of, mixture_of, chunk_of, kind):
    # Trap 16: the two tokenizers give the same words other ids; EOS is no word.
    classifier = classifier_of(kind)
    chunk = chunk_of(PAIRS)
    judged, stats = mixture_of(ModelScorer("reward_model", classifier)).judge(chunk)
    expected = [float(plain_logits(classifier, f"{p} {r}")[1]) for p, r in PAIRS]
    assert [j.score for j in judged.judgements] == pytest.approx(expected, abs=1e-5)
    ids = np.concatenate([chunk.prompts[0].token_ids, chunk.rollouts[0].response_ids]).tolist()
    assert ids != classifier.tokenizer(" ".join(PAIRS[0]))["input_ids"], "the tokenizers are alike: nothing was tested"
    assert (stats.samples, stats.score_sum) == (4, pytest.approx(sum(expected), abs=1e-4))


def test_judgements_are_of_their_rollouts_in_order(model_mixture, chunk_of):
    scorer = model_mixture("bag")
    chunk = chunk_of(PAIRS)
    judged = scorer.judge(chunk)[0].judgements
    assert [j.draw_index for j in judged] == [p.draw_index for p in chunk.prompts] == [40, 43, 46, 49]
    backwards = scorer.judge(RolloutChunk(chunk.prompts[::-1], chunk.rollouts[::-1], 1.0))[0].judgements
    assert [j.draw_index for j in backwards] == [49, 46, 43, 40]
    assert {j.draw_index: pytest.approx(j.score, abs=1e-6) for j in backwards} == {
        j.draw_index: j.score for j in judged
    }


@pytest.mark.parametrize("kind", KINDS)
def test_the_prompt_baseline_subtracts_the_logit_of_the_prompt_alone(classifier_of, model_mixture, chunk_of, kind):
    classifier, mixture = classifier_of(kind), model_mixture(kind, prompt_baseline=True)
    for judgement, (prompt, response) in zip(mixture.judge(chunk_of(PAIRS))[0].judgements, PAIRS, strict=True):
        whole, alone = (float(plain_logits(classifier, t)[1]) for t in (f"{prompt} {response}", prompt))
        assert judgement.score == pytest.approx(whole - alone, abs=1e-5)
        assert judgement.parts["prompt"] == pytest.approx(alone, abs=1e-5)
        assert judgement.parts["reward_model"] == pytest.approx(whole, abs=1e-5)


def test_without_a_baseline_no_prompt_is_scored(model_mixture, chunk_of):
    judgement = model_mixture("bag").judge(chunk_of(PAIRS))[0].judgements[0]
    assert set(judgement.parts) == {"reward_model", "reward_model_p_positive"}
    assert judgement.score == judgement.parts["reward_model"]


def test_p_positive_of_a_bag_is_the_logistic_of_its_log_odds(classifier_of):
    logits, probabilities = classifier_of("bag").judge(TEXTS)  # logits are -z/2 and z/2
    assert probabilities == pytest.approx([1 / (1 + math.exp(-2 * z)) for z in logits])


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_logit_that_is_not_finite_leaves_its_rollout_alone_without_a_score(
    classifier_of, mixture_of, chunk_of, value
):
    # Never a made-up score: not even a clipped one.
    classifier = classifier_of("bag")
    sound = mixture_of(ModelScorer("reward_model", classifier)).judge(chunk_of(PAIRS))[0].judgements
    classifier.model.words.weight.data[classifier.tokenizer("hate")["input_ids"][0]] = value
    judged, stats = mixture_of(ModelScorer("reward_model", classifier)).judge(chunk_of(PAIRS))
    assert [j if j is None else j.score for j in judged.judgements] == [
        s.score if i != 1 else None for i, s in enumerate(sound)
    ]
    (failed,) = stats.unscored
    assert (failed.draw_index, failed.sample_index, failed.reason) == (43, 0, "reward_nonfinite")
    assert "scorer reward_model" in failed.detail
    assert stats.score_sum == pytest.approx(sum(s.score for i, s in enumerate(sound) if i != 1))


@pytest.mark.parametrize("baseline", [False, True])
def test_only_the_text_that_a_classifier_cannot_take_is_without_a_score(classifier_of, texts_of, soon, baseline):
    classifier = classifier_of("bag")
    words = classifier.model.words.weight.data
    last = len(words) - 1
    texts = texts_of("plot", classifier.tokenizer.decode([last]), "cast")
    expected = ModelScorer("reward_model", classifier, prompt_baseline=baseline).score(texts, soon)
    classifier.model.words.weight.data = words[:last].clone()  # an embedding that is too short for one word
    found = ModelScorer("reward_model", classifier, prompt_baseline=baseline).score(texts, soon)
    assert isinstance(found[1], Failure)
    assert found[1].reason == "reward_error"
    assert "IndexError" in found[1].detail
    assert [found[i].value for i in (0, 2)] == pytest.approx([expected[i].value for i in (0, 2)], abs=1e-6)


def test_the_version_tells_the_weights_of_every_scorer(classifier_of, mixture_of):
    def version(**seeds):
        return mixture_of(*(ModelScorer(n, classifier_of("bag", seed=s)) for n, s in seeds.items())).version

    assert version(a=0, b=1) == version(a=0, b=1)
    assert len({version(a=0), version(a=1), version(a=0, b=1), version(a=0, b=2), version(b=0)}) == 5
    scorer = ModelScorer("a", classifier_of("bag"))
    assert mixture_of((scorer, 2.0)).version != mixture_of((scorer, 1.0)).version
