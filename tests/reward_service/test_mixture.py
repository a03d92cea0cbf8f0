"""Scores mixed by weight: every part is kept, and a failure of any scorer drops exactly the rollouts concerned."""

import math
import time

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from common.errors import MemberFailedError
from common.records import Identity, Prompt, Rollout, RolloutChunk
from reward_service.mixture import PROBE, Mixture, Term, text_of
from reward_service.model_scorer import ModelScorer
from reward_service.scorers import Failure, Scored

PAIRS = [("the film", "is good"), ("i", "hate the plot very"), ("a story", "not bad"), ("it is", "a very good cast")]
REASONS = ["reward_nonfinite", "reward_shape", "reward_error", "reward_timeout"]


class Scripted:
    """A scorer in memory: its outcomes were decided before."""

    is_deterministic = False

    def __init__(self, name, outcomes=None, *, version="1"):
        self.name = name
        self.version = version
        self.outcomes = outcomes
        self.asked = []
        self.is_closed = False

    def score(self, texts, deadline):
        self.asked.append((list(texts), deadline))
        return list(self.outcomes)

    def close(self):
        self.is_closed = True


def scored(name, value):
    return Scored(value, {name: value})


def chunk_of_length(n):
    """Rollouts whose draw indices are 10, 11, ...; what they say does not matter."""
    ids = np.array([3], dtype=np.int32)
    return RolloutChunk(
        tuple(Prompt(10 + i, i, ids, 4) for i in range(n)),
        tuple(Rollout(10 + i, 2, 0, 0, ids, np.zeros(1, dtype=np.float32), Identity(0, 0), "length") for i in range(n)),
        1.0,
    )


outcome = st.one_of(
    st.floats(-1e30, 1e30),
    st.sampled_from([math.nan, math.inf, -math.inf, 3.5e38, -1e300]),
    st.sampled_from(REASONS),
)
weights = st.floats(-3, 3, allow_nan=False)


@given(data=st.data(), num_texts=st.integers(1, 6), weight=st.lists(weights, min_size=1, max_size=4))
def test_a_failure_of_any_scorer_drops_exactly_the_rollouts_concerned(policy_tokenizer, data, num_texts, weight):
    table = [data.draw(st.lists(outcome, min_size=num_texts, max_size=num_texts)) for _ in weight]
    names = [f"s{i}" for i in range(len(weight))]
    scorers = [
        Scripted(n, [Failure(o, "why") if isinstance(o, str) else scored(n, o) for o in column])
        for n, column in zip(names, table, strict=True)
    ]
    terms = [Term(s, w) for s, w in zip(scorers, weight, strict=True)]
    mixture = Mixture(terms, policy_tokenizer, budget_s=9.0, probe_budget_s=9.0)
    judged, stats = mixture.judge(chunk_of_length(num_texts))

    expected_reasons = {}
    for i in range(num_texts):
        for column in table:
            if isinstance(column[i], str) or not abs(column[i]) <= 3.4e38:
                expected_reasons[10 + i] = column[i] if isinstance(column[i], str) else "reward_nonfinite"
                break
    assert {u.draw_index: u.reason for u in stats.unscored} == expected_reasons
    assert all(u.sample_index == 2 and u.detail.startswith("scorer s") for u in stats.unscored)
    assert [j is None for j in judged.judgements] == [10 + i in expected_reasons for i in range(num_texts)]
    assert stats.samples == num_texts
    for i, judgement in enumerate(judged.judgements):
        if judgement is not None:
            assert (judgement.draw_index, judgement.sample_index) == (10 + i, 2)
            assert judgement.parts == {n: column[i] for n, column in zip(names, table, strict=True)}
            total = sum(w * column[i] for w, column in zip(weight, table, strict=True))
            assert judgement.score == pytest.approx(total, rel=1e-12)
    assert stats.scores == tuple(j.score for j in judged.judgements if j is not None)
    assert stats.score_sum == pytest.approx(sum(j.score for j in judged.judgements if j is not None), rel=1e-12)


def test_the_score_is_the_weighted_sum_and_every_number_is_kept(classifier_of, mixture_of, chunk_of):
    model = ModelScorer("reward_model", classifier_of("bag"), prompt_baseline=True)
    lengths = Scripted("length", [scored("length", float(n)) for n in (1, 2, 3, 4)])
    watched = Scripted("watched", [scored("watched", 1e9)] * 4)
    judged, _ = mixture_of((model, 2.0), (lengths, -0.5), (watched, 0.0)).judge(chunk_of(PAIRS))
    for judgement, n in zip(judged.judgements, (1, 2, 3, 4), strict=True):
        parts = judgement.parts
        assert set(parts) == {"reward_model", "reward_model_p_positive", "prompt", "length", "watched"}
        assert judgement.score == pytest.approx(2.0 * (parts["reward_model"] - parts["prompt"]) - 0.5 * n)
        assert (parts["length"], parts["watched"]) == (n, 1e9)


def test_a_score_that_is_too_large_only_as_a_sum_is_none(mixture_of):
    mixture = mixture_of(Scripted("a", [scored("a", 3e38)]), Scripted("b", [scored("b", 3e38)]))
    judged, stats = mixture.judge(chunk_of_length(1))
    assert judged.judgements == (None,)
    assert stats.unscored[0].reason == "reward_nonfinite"


def test_prompt_and_response_together_are_the_text_that_the_classifier_reads(mixture_of, chunk_of):
    scorer = Scripted("a", [scored("a", 1.0)] * 4)
    start = time.monotonic()
    mixture_of(scorer).judge(chunk_of(PAIRS))
    ((texts, deadline),) = scorer.asked
    assert [(t.prompt, t.response) for t in texts] == [(p, f" {r}") for p, r in PAIRS], "EOS is no word"
    assert all(t.whole == t.prompt + t.response for t in texts)
    assert 119.0 < deadline - start < 150.0


def test_a_response_that_changes_how_the_prompt_is_written_is_decoded_alone(policy_tokenizer, classifier_of):
    class Joining:
        """A tokenizer whose decoder capitalises what is long."""

        def decode(self, ids, **settings):
            text = policy_tokenizer.decode(ids, **settings)
            return text.upper() if len(ids) > 2 else text

    scorer = Scripted("a", [scored("a", 1.0)])
    ids = [np.array(policy_tokenizer(text)["input_ids"], dtype=np.int32) for text in ("the film", "is good")]
    chunk = RolloutChunk(
        (Prompt(1, 0, ids[0], 4),),
        (Rollout(1, 0, 0, 0, ids[1], np.zeros(2, dtype=np.float32), Identity(0, 0), "length"),),
        1.0,
    )
    Mixture([Term(scorer, 1.0)], Joining(), budget_s=9.0, probe_budget_s=9.0).judge(chunk)
    (text,) = scorer.asked[0][0]
    assert (text.prompt, text.response, text.whole) == ("the film", "is good", "THE FILM IS GOOD")


def test_the_version_tells_names_weights_and_scorers(mixture_of):
    versions = {
        mixture_of((Scripted("a"), 1.0)).version,
        mixture_of((Scripted("b"), 1.0)).version,
        mixture_of((Scripted("a", version="2"), 1.0)).version,
        mixture_of((Scripted("a"), 2.0)).version,
        mixture_of((Scripted("a"), 1.0), (Scripted("b"), 1.0)).version,
    }
    assert len(versions) == 5
    assert mixture_of(Scripted("a")).version in versions


# --- the probe


def test_the_probe_gives_the_numbers_of_classifiers_only(classifier_of, mixture_of):
    classifier, other = classifier_of("conv"), Scripted("other", [scored("other", 5.0)])
    mixture = mixture_of(ModelScorer("reward_model", classifier), (other, 3.0))
    logit, probability = classifier.judge([PROBE.prompt + PROBE.response])
    assert mixture.probe() == {
        "reward_model": pytest.approx(logit[0]),
        "reward_model_p_positive": pytest.approx(probability[0]),
    }
    assert [texts for texts, _ in other.asked] == [[PROBE]]
    assert mixture.probe() == mixture.probe()


def test_replicas_of_other_weights_answer_the_probe_otherwise(classifier_of, mixture_of):
    first, second = (mixture_of(ModelScorer("m", classifier_of("conv", seed=s))).probe() for s in (0, 1))
    assert abs(first["m"] - second["m"]) > 1e-3


@pytest.mark.parametrize("bad", [Failure("reward_timeout", "slow"), scored("other", math.nan)])
def test_a_probe_without_a_score_is_an_error_that_names_the_scorer(classifier_of, mixture_of, bad):
    mixture = mixture_of(ModelScorer("reward_model", classifier_of("bag")), Scripted("other", [bad]))
    with pytest.raises(
        MemberFailedError, match=r"the probe text 'This film .*' cannot be scored: reward_\w+: scorer other: "
    ):
        mixture.probe()


def test_closing_closes_every_scorer(mixture_of):
    scorers = [Scripted("a"), Scripted("b")]
    mixture_of(*scorers).close()
    assert all(scorer.is_closed for scorer in scorers)


@pytest.mark.parametrize(("response", "read"), [("is good", "how was it is good"), ("", "how was it")])
def test_a_prompt_that_a_template_wrote_is_judged_by_its_plain_text(policy_tokenizer, response, read):
    ids = [np.array(policy_tokenizer(t)["input_ids"], dtype=np.int32) for t in ("the film a story", response)]
    prompt = Prompt(1, 0, ids[0], 4, "how was it")
    text = text_of(policy_tokenizer, prompt, Rollout(1, 0, 0, 0, ids[1], np.zeros(2), Identity(0, 0), "length"))
    assert (text.prompt, text.whole) == ("how was it", read)
    assert text.prompt + text.response == text.whole
