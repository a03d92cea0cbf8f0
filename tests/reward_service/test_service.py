"""A replica scores and refers, in calls of their own."""

import numpy as np
import pytest

from common.errors import ConfigError
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
    reference = Reference(language_model, temperature=1.0, batch_sequences=8)
    service = RewardService(model_mixture("bag"), reference)
    payload, stats = service.reference(chunk_of(PAIRS))
    for found, expected in zip(payload.logprobs, reference.logprobs(chunk_of(PAIRS))[0].logprobs, strict=True):
        np.testing.assert_array_equal(found, expected)
    assert set(stats.seconds) == {"reference"}


def test_a_replica_without_a_reference_says_which_setting_gives_it_one(model_mixture, chunk_of):
    service = RewardService(model_mixture("bag"), None)
    with pytest.raises(ConfigError, match=r'set ppo\.reference = "service"'):
        service.reference(chunk_of(PAIRS))
