"""The frozen reference gives the policy's own logprobs, tempered as the policy is."""

import numpy as np
import pytest
import torch

from actors.engine import SamplingEngine
from common.modeling import PolicyWithValueHead
from common.records import Identity, Prompt, Rollout, RolloutChunk
from reward_service.reference import Reference

LENGTHS, LIMITS = (3, 1, 7, 2, 11, 5, 1, 8, 4), (9, 14, 1, 12, 3, 6, 2, 10, 8)


def sampled_chunk(model, temperature=1.0):
    rng = np.random.default_rng(0)
    prompts = [rng.integers(3, 97, n).astype(np.int32) for n in LENGTHS]
    sampled = SamplingEngine(model, frozenset({2})).sample(
        prompts, max_new_tokens=LIMITS, seeds=range(9), temperature=temperature
    )
    return RolloutChunk(
        tuple(Prompt(i, i, p, n) for i, (p, n) in enumerate(zip(prompts, LIMITS, strict=True))),
        tuple(Rollout(i, 0, 0, i, s.ids, s.logprobs, Identity(0, 0), s.finish) for i, s in enumerate(sampled)),
        temperature,
    )


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
@pytest.mark.parametrize("batch_sequences", [1, 4, 64])
def test_at_equal_weights_the_reference_agrees_with_the_learner(language_model, temperature, batch_sequences):
    # Trap 13, over ragged prompts and responses.
    chunk = sampled_chunk(language_model, temperature)
    reference = Reference(language_model, batch_sequences=batch_sequences)
    found, stats = reference.logprobs(chunk)
    assert stats.samples == len(found.logprobs) == len(LENGTHS)
    learner = PolicyWithValueHead(language_model)
    for prompt, rollout, logprobs in zip(chunk.prompts, chunk.rollouts, found.logprobs, strict=True):
        P, R = len(prompt.token_ids), len(rollout.response_ids)
        ids = torch.from_numpy(np.concatenate([prompt.token_ids, rollout.response_ids]).astype(np.int64))[None]
        with torch.no_grad():
            own = learner(ids, torch.tensor([P]), torch.tensor([R]), R, temperature).logprobs[0].numpy()
        assert logprobs.shape == (R,)
        assert logprobs.dtype == np.float32
        np.testing.assert_allclose(logprobs, own, atol=1e-5)
        np.testing.assert_allclose(logprobs, rollout.logprobs, atol=1e-4)


def test_reference_logprobs_are_the_gathered_plain_forward(language_model):
    chunk = sampled_chunk(language_model, 0.7)
    found, _ = Reference(language_model, batch_sequences=4).logprobs(chunk)
    for prompt, rollout, logprobs in zip(chunk.prompts, chunk.rollouts, found.logprobs, strict=True):
        ids = torch.from_numpy(np.concatenate([prompt.token_ids, rollout.response_ids]).astype(np.int64))[None]
        with torch.no_grad():
            logits = language_model(input_ids=ids).logits[0, len(prompt.token_ids) - 1 : -1].double()
        expected = torch.log_softmax(logits / 0.7, -1)[range(len(logprobs)), rollout.response_ids]
        np.testing.assert_allclose(logprobs, expected, atol=1e-5)


def test_the_head_computes_logits_of_response_tokens_alone(language_model):
    chunk = sampled_chunk(language_model)
    shapes = []
    head = language_model.get_output_embeddings()
    hook = head.register_forward_hook(lambda module, states, logits: shapes.append(tuple(logits.shape[:-1])))
    Reference(language_model, batch_sequences=64).logprobs(chunk)
    hook.remove()
    assert shapes == [(1, sum(len(rollout.response_ids) for rollout in chunk.rollouts))]


def test_results_do_not_share_memory_with_the_padded_table(language_model):
    found, _ = Reference(language_model, batch_sequences=64).logprobs(sampled_chunk(language_model))
    assert all(row.base is None for row in found.logprobs), "a view would carry the whole table to the learner"


def test_the_reference_carries_no_gradients_and_is_left_as_it_was(language_model):
    before = [p.detach().clone() for p in language_model.parameters()]
    Reference(language_model.train(), batch_sequences=4).logprobs(sampled_chunk(language_model))
    assert not language_model.training
    assert all(p.grad is None for p in language_model.parameters())
    assert all(torch.equal(a, b) for a, b in zip(before, language_model.parameters(), strict=True))
