"""A replica scores and refers, in calls of their own."""

import numpy as np
import pytest

from common.errors import ConfigError
from reward_service.model_scorer import ModelScorer
from reward_service.reference import Reference
from reward_service.service import RewardService

PAIRS = [("the film", "is good"), ("i", "hate the plot very")]


def test_a_replica_scores_as_its_scorer_does(model_mixture, chunk_of):
    scorer = model_mixture("conv")
    payload, stats = RewardService(scorer, None).score(chunk_of(PAIRS))
    assert payload == scorer.judge(chunk_of(PAIRS))[0]
    assert stats.samples == 2
    assert set(stats.seconds) == {"score"}


def test_a_replica_with_a_reference_gives_its_logprobs(model_mixture, chunk_of, language_model):
    reference = Reference(language_model, batch_sequences=8)
    service = RewardService(model_mixture("bag"), reference)
    payload, stats = service.reference(chunk_of(PAIRS))
    for found, expected in zip(payload.logprobs, reference.logprobs(chunk_of(PAIRS))[0].logprobs, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert set(stats.seconds) == {"reference"}


def test_a_judge_beside_the_scorers_changes_nothing_of_what_training_sees(mixture_of, classifier_of, chunk_of):
    scorer = ModelScorer("reward_model", classifier_of("bag"), prompt_baseline=True)
    judge = ModelScorer("judge", classifier_of("conv"))
    plain = mixture_of(ModelScorer("reward_model", classifier_of("bag")), (judge, 0.0))
    alone, both = RewardService(mixture_of(scorer), None), RewardService(mixture_of(scorer), None, plain)
    chunk = chunk_of(PAIRS)
    assert both.score(chunk)[0] == alone.score(chunk)[0]
    evaluated = both.evaluate(chunk)[0].judgements
    for found, trained in zip(evaluated, both.score(chunk)[0].judgements, strict=True):
        assert found.score == found.parts["reward_model"] == trained.parts["reward_model"], "without the baseline"
        assert "judge_p_positive" in found.parts
        assert not any("judge" in part for part in trained.parts)
    assert {"judge", "reward_model"} <= both.probe().keys(), "the judge proves itself too"


def test_a_replica_without_a_judge_evaluates_nothing(model_mixture, chunk_of):
    with pytest.raises(ConfigError, match=r"holds no judge; only a run with an \[evaluate\] table"):
        RewardService(model_mixture("bag"), None).evaluate(chunk_of(PAIRS))


def test_a_replica_without_a_reference_says_which_setting_gives_it_one(model_mixture, chunk_of):
    service = RewardService(model_mixture("bag"), None)
    with pytest.raises(ConfigError, match=r'set ppo\.reference = "service"'):
        service.reference(chunk_of(PAIRS))
