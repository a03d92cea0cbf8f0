"""Engine, learner and published weights agree for every kind of causal model, whatever its parts are called."""

import numpy as np
import pytest
import torch
from torch.func import functional_call
from transformers import (
    AutoModelForCausalLM,
    CohereConfig,
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Qwen2Config,
    Qwen3Config,
)

from actors.engine import SamplingEngine
from common.flat_parameters import FlatParameters
from common.frozen_trunk import FrozenTrunk
from common.modeling import PolicyWithValueHead, freeze_below, load_policy
from common.weights import distinct_parameters, flatten

VOCABULARY, LAYERS, EOS = 61, 3, frozenset({2, 7})
SIZES = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "max_position_embeddings": 64}
NARROW = SIZES | {"intermediate_size": 48, "num_key_value_heads": 2, "head_dim": 8, "initializer_range": 0.25}
SHAPES = {
    "gpt2": (GPT2Config, {"n_embd": 32, "n_layer": LAYERS, "n_head": 4, "n_positions": 64, "initializer_range": 0.25}),
    "llama": (LlamaConfig, NARROW | {"tie_word_embeddings": True}),
    "llama, head of its own": (LlamaConfig, NARROW | {"tie_word_embeddings": False}),
    "qwen2": (Qwen2Config, {k: v for k, v in NARROW.items() if k != "head_dim"} | {"tie_word_embeddings": True}),
    "qwen3": (Qwen3Config, NARROW | {"tie_word_embeddings": True}),
    "gemma": (GemmaConfig, NARROW),
    "gemma2, soft-capped logits": (Gemma2Config, NARROW | {"sliding_window": 6, "final_logit_softcapping": 0.5}),
    "cohere, scaled logits": (
        CohereConfig,
        {k: v for k, v in NARROW.items() if k != "head_dim"} | {"logit_scale": 0.3},
    ),
    "gemma3, sliding windows": (Gemma3TextConfig, NARROW | {"sliding_window": 6, "sliding_window_pattern": 2}),
    "mistral, sliding window": (MistralConfig, NARROW | {"sliding_window": 6}),
    "mixtral": (MixtralConfig, NARROW | {"num_local_experts": 5}),
    "gpt-neox": (GPTNeoXConfig, SIZES | {"intermediate_size": 48, "initializer_range": 0.25}),
}
PROMPTS = [np.arange(8, 8 + n, dtype=np.int32) for n in (1, 5, 3, 9)]


def make(kind: str, seed: int = 0):
    shape, settings = SHAPES[kind]
    torch.manual_seed(seed)
    special = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    return AutoModelForCausalLM.from_config(shape(vocab_size=VOCABULARY, **special, **settings), dtype=torch.float32)


@pytest.fixture(params=SHAPES)
def kind(request):
    return request.param


def as_batch(prompts, responses):
    rows = [np.concatenate(pair) for pair in zip(prompts, responses, strict=True)]
    ids = torch.zeros(len(rows), max(map(len, rows)), dtype=torch.int64)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.from_numpy(row.astype(np.int64))
    lengths = [torch.tensor([len(part) for part in parts]) for parts in (prompts, responses)]
    return ids, lengths[0], lengths[1], max(map(len, responses))


def logprobs_of(model, batch, weights=None):
    with torch.no_grad():
        return functional_call(model, weights or {}, (*batch, 0.8)).logprobs


def test_a_worker_with_published_weights_samples_with_the_learners_logprobs(kind):
    learner = PolicyWithValueHead(make(kind, seed=1))
    worker = make(kind, seed=2).eval()
    FlatParameters(distinct_parameters(worker)).load(*flatten(learner.policy))
    lengths = [20, 12, 16, 20]
    sampled = SamplingEngine(worker, EOS).sample(PROMPTS, max_new_tokens=lengths, seeds=range(4), temperature=0.8)
    logprobs = logprobs_of(learner, as_batch(PROMPTS, [one.ids for one in sampled]))
    assert max(len(one.ids) for one in sampled) > 8, "nothing longer than a sliding window"
    for i, one in enumerate(sampled):
        np.testing.assert_allclose(one.logprobs, logprobs[i, : len(one.ids)].numpy(), atol=2e-4)


def test_what_is_published_is_all_that_differs_between_two_models_of_a_shape(kind):
    # What no parameter holds, as the frequencies of rotary positions, follows from the shape.
    first, second = make(kind, seed=1), make(kind, seed=2)
    buffer, manifest = flatten(first)
    head = first.get_output_embeddings().weight
    tied = head is first.get_input_embeddings().weight
    assert sum(tuple(spec.shape) == tuple(head.shape) for spec in manifest) == (1 if tied else 2)
    FlatParameters(distinct_parameters(second)).load(buffer, manifest)
    ids = torch.arange(8, 20)[None, :]
    with torch.no_grad():
        assert torch.equal(first.eval()(input_ids=ids).logits, second.eval()(input_ids=ids).logits)


def test_the_trained_layers_kept_twice_are_the_whole_difference_to_the_reference(kind):
    model = PolicyWithValueHead(make(kind))
    freeze_below(model.policy, 1)
    batch = as_batch(PROMPTS, [np.arange(20, 32, dtype=np.int32)] * 4)
    kept = {name: p.detach().clone() for name, p in model.named_parameters() if p.requires_grad}
    before, frozen = logprobs_of(model, batch), flatten(model.policy)[0].size - sum(p.numel() for p in kept.values())
    assert frozen > 0
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    model(*batch, 0.8).logprobs.mean().backward()
    optimizer.step()
    assert (logprobs_of(model, batch) - before).abs().max() > 1e-2, "nothing was trained"
    assert torch.equal(logprobs_of(model, batch, kept), before)


def test_logprobs_at_the_responses_are_those_of_the_whole_forward(kind):
    model = PolicyWithValueHead(make(kind))
    ids, prompts, responses, _ = batch = as_batch(
        PROMPTS, [np.arange(20, 20 + n, dtype=np.int32) for n in (3, 9, 1, 5)]
    )
    found = logprobs_of(model, batch)
    model.pack()
    torch.testing.assert_close(logprobs_of(model, batch), found, atol=1e-5, rtol=0)
    assert (model.layout(prompts + responses, ids.shape[1]) is not None) == ("soft-capped" not in kind)
    with torch.no_grad():
        for i, (prompt, response) in enumerate(zip(prompts.tolist(), responses.tolist(), strict=True)):
            log_p = (model.policy(input_ids=ids[i : i + 1, : prompt + response]).logits[0] / 0.8).log_softmax(-1)
            before = torch.arange(prompt - 1, prompt + response - 1)
            torch.testing.assert_close(found[i, :response], log_p[before, ids[i, before + 1]], atol=1e-5, rtol=0)
            assert not found[i, response:].any(), "padding holds zeros"


def test_a_frozen_trunk_is_computed_once_for_every_kind(kind):
    model = PolicyWithValueHead(make(kind))
    batch = as_batch(PROMPTS, [np.arange(20, 32, dtype=np.int32)] * 4)
    trunk = FrozenTrunk.of(model.policy, 1)
    with trunk.watched() as seen:
        expected = logprobs_of(model, batch)
    with trunk.replaced(seen[0]):
        torch.testing.assert_close(logprobs_of(model, batch), expected, atol=1e-6, rtol=0)


def test_a_model_comes_back_from_its_folder(kind, tmp_path):
    model = make(kind)
    model.save_pretrained(tmp_path)
    ids = torch.arange(8, 20)[None, :]
    with torch.no_grad():
        assert torch.equal(load_policy(str(tmp_path))(input_ids=ids).logits, model.eval()(input_ids=ids).logits)
