"""Our decoder of the Llama family against the models' own plain forward, and what it leaves to that."""

import numpy as np
import pytest
import torch
from torch import nn
from transformers import LlamaConfig, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

import actors.packed_linear
import actors.ragged
from actors.engine import SamplingEngine
from actors.llama_decoder import why_not_llama
from common.seeds import sample_seed

EOS = 2
LENGTHS = (3, 1, 7, 2, 11, 5, 1, 8)
LIMITS = (9, 14, 1, 12, 3, 6, 2, 10)
SMALL = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
SMALL |= {"max_position_embeddings": 64, "initializer_range": 0.25, "num_key_value_heads": 2}
SMALL |= {"pad_token_id": 0, "eos_token_id": EOS, "bos_token_id": None}
FIXED = {
    "linear": {"factor": 3.0},
    "llama3": {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16},
    "yarn": {"factor": 4.0, "original_max_position_embeddings": 16},
}
CHANGING = {"dynamic": {"factor": 2.0}}


def rope(kind):
    return {"rope_parameters": {"rope_type": kind, "rope_theta": 1000.0} | (FIXED | CHANGING).get(kind, {})}


def mistral(**changes):
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(vocab_size=97, **SMALL | {"sliding_window": None} | changes)).eval()


def qwen2(**changes):
    torch.manual_seed(0)
    model = Qwen2ForCausalLM(Qwen2Config(vocab_size=97, **SMALL | changes)).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("bias"):
                parameter.normal_()
    return model


def sample(model, *, prompts=None, limits=LIMITS, kind="auto", temperature=1.0, top_p=1.0, eos=frozenset(), **more):
    engine = SamplingEngine(model, eos, kind=kind, **more)
    prompts = prompts_of(model.config.vocab_size) if prompts is None else prompts
    seeds = [sample_seed(0, i, 0) for i in range(len(prompts))]
    done = engine.sample(prompts, max_new_tokens=limits, seeds=seeds, temperature=temperature, top_p=top_p)
    return engine, prompts, done


def prompts_of(vocab_size, lengths=LENGTHS):
    rng = np.random.default_rng(0)
    return [rng.integers(3, vocab_size, n).astype(np.int32) for n in lengths]


@torch.no_grad()
def plain_logprobs(model, prompt, response, temperature=1.0):
    text = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))[None]
    logits = model(input_ids=text, use_cache=False).logits[0, len(prompt) - 1 : -1].double()
    return torch.log_softmax(logits / temperature, -1)[torch.arange(len(response)), text[0, len(prompt) :]].numpy()


def assert_as_plain(model, prompts, done, *, temperature=1.0, atol=1e-4):
    for prompt, one in zip(prompts, done, strict=True):
        expected = plain_logprobs(model, prompt, one.ids, temperature)
        np.testing.assert_allclose(one.logprobs, expected, atol=atol)


def tokens(done):
    return [one.ids.tolist() for one in done]


@pytest.mark.parametrize("vocab_size", [97, 128, 2000, 2001, 4096, 49152])
@pytest.mark.parametrize("tied", [True, False])
def test_logprobs_are_those_of_the_plain_forward_for_every_vocabulary(llama, vocab_size, tied):
    model = llama(vocab_size=vocab_size, tie_word_embeddings=tied)
    engine, prompts, done = sample(model, temperature=0.7)
    assert engine.path.startswith("llama")
    assert [len(one.ids) for one in done] == list(LIMITS)
    assert_as_plain(model, prompts, done, temperature=0.7)


@pytest.mark.parametrize(
    "make",
    [
        lambda llama: llama(num_key_value_heads=2),
        lambda llama: llama(num_key_value_heads=1),
        lambda llama: llama(head_dim=16),
        lambda llama: llama(attention_bias=True, mlp_bias=True),
        *(lambda llama, kind=kind: llama(**rope(kind)) for kind in ("default", *FIXED)),
        lambda llama: mistral(),
        lambda llama: qwen2(),
    ],
)
def test_every_shape_of_the_family_gives_the_tokens_of_its_own_forward(llama, make):
    model = make(llama)
    engine, prompts, done = sample(model)
    own, _, others = sample(model, kind="generic")
    assert (engine.path.startswith("llama"), own.path) == (True, "generic")
    assert tokens(done) == tokens(others)
    assert_as_plain(model, prompts, done)


def test_a_nucleus_gives_the_tokens_and_logprobs_of_the_own_forward(llama):
    model = llama(vocab_size=2001)
    _, _, done = sample(model, top_p=0.6)
    _, _, others = sample(model, top_p=0.6, kind="generic")
    assert tokens(done) == tokens(others)
    for one, other in zip(done, others, strict=True):
        np.testing.assert_allclose(one.logprobs, other.logprobs, atol=1e-4)


class Adapted(nn.Linear):
    """As an adapter's layer: a linear one that does more."""


def adapted(llama):
    model = llama()
    model.model.layers[1].mlp.up_proj = Adapted(32, 48, bias=False)
    return model


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda llama, gpt2: gpt2(), "GPT2LMHeadModel"),
        (lambda llama, gpt2: llama(hidden_act="gelu"), "activation is gelu"),
        (lambda llama, gpt2: llama(**rope("dynamic")), "dynamic"),
        (lambda llama, gpt2: mistral(sliding_window=6), "sliding window"),
        (lambda llama, gpt2: qwen2(use_sliding_window=True, sliding_window=6, max_window_layers=1), "sliding window"),
        (lambda llama, gpt2: adapted(llama), "up_proj is a Adapted"),
    ],
)  # fmt: skip
def test_what_it_does_not_compute_is_left_to_the_own_forward_with_a_reason(llama, gpt2, make, reason):
    model = make(llama, gpt2)
    engine, prompts, done = sample(model)
    assert engine.path == "generic"
    assert reason in engine.reason
    assert_as_plain(model, prompts, done)


def test_a_model_of_this_family_has_no_reason(llama):
    assert why_not_llama(llama()) == ""
    assert isinstance(llama().config, LlamaConfig)


def test_without_packed_products_it_multiplies_plainly_and_says_why(llama, monkeypatch):
    model = llama(vocab_size=2001, tie_word_embeddings=False)
    _, _, packed = sample(model)
    monkeypatch.setattr(actors.packed_linear, "PROBE_TOLERANCE", -1.0)
    engine, prompts, done = sample(model)
    assert engine.path == "llama"
    assert "off" in engine.reason
    assert tokens(done) == tokens(packed)
    assert_as_plain(model, prompts, done)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(0.9)
    engine.renew()
    texts = np.arange(3, 27, dtype=np.int32).reshape(2, 12)
    for text, mine in zip(texts, engine.logprobs(texts), strict=True):
        np.testing.assert_allclose(mine, plain_logprobs(model, text[:1], text[1:]), atol=1e-4)


@pytest.mark.parametrize("kind", ["auto", "generic"])
@pytest.mark.parametrize("tied", [True, False])
def test_logprobs_of_given_texts_come_from_the_copies_that_generate(llama, kind, tied):
    model = llama(tie_word_embeddings=tied)
    engine, _, _ = sample(model, kind=kind)
    texts = np.arange(3, 39, dtype=np.int32).reshape(3, 12)

    def plain():
        return np.stack([plain_logprobs(model, text[:1], text[1:]) for text in texts])

    before = plain()
    np.testing.assert_allclose(engine.logprobs(texts), before, atol=1e-4)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    assert np.abs(plain() - before).max() > 0.1
    if kind == "auto":
        assert np.abs(engine.logprobs(texts) - plain()).max() > 0.1, "a stale copy would not be seen"
    engine.renew()
    np.testing.assert_allclose(engine.logprobs(texts), plain(), atol=1e-4)


def test_rows_leave_at_once_and_all_prompts_are_read_in_one_pass(llama, widths):
    limits = (1, 2, 2, 3, 5, 8, 13, 21)
    sample(llama(), limits=limits)
    assert widths == [(0, 8), *((sum(limit > step for limit in limits), 0) for step in range(1, 21))]


@pytest.fixture
def widths(monkeypatch):
    """Running and joining rows of every step."""
    seen = []
    advance = actors.engine.LlamaDecoder.advance

    def watched(self, cache, tokens, positions, prompts):
        seen.append((len(tokens), len(prompts)))
        return advance(self, cache, tokens, positions, prompts)

    monkeypatch.setattr(actors.engine.LlamaDecoder, "advance", watched)
    return seen


@pytest.mark.parametrize("kind", ["auto", "generic"])
@pytest.mark.parametrize("continuous", [True, False])
@pytest.mark.parametrize("width", [1, 3, 8, 50])
def test_fewer_rows_at_a_time_give_the_same_tokens(llama, kind, continuous, width):
    model = llama(vocab_size=301)
    prompts, limits = prompts_of(301, LENGTHS * 3), LIMITS * 3
    _, _, together = sample(model, prompts=prompts, limits=limits)
    _, _, done = sample(model, prompts=prompts, limits=limits, kind=kind, batch_sequences=width, continuous=continuous)
    assert tokens(done) == tokens(together)
    assert_as_plain(model, prompts, done)


def test_waiting_rows_join_as_others_are_done_where_that_is_wanted(llama, widths):
    work = {"prompts": prompts_of(97, LENGTHS * 3), "limits": LIMITS * 3, "batch_sequences": 4}
    sample(llama(), continuous=True, **work)
    joins = [(running, joining) for running, joining in widths if joining]
    assert all(running + joining <= 4 for running, joining in widths)
    assert any(running and joining for running, joining in joins), "nobody joined running rows"
    assert all(running + joining == 4 for running, joining in widths[:20]), "a slot stayed empty"
    continuous_steps = len(widths)
    widths.clear()
    sample(llama(), continuous=False, **work)
    assert not any(running and joining for running, joining in widths)
    assert len(widths) > continuous_steps


def test_long_prompts_are_read_a_few_at_a_time(llama, widths, monkeypatch):
    model = llama()
    _, _, at_once = sample(model)
    widths.clear()
    monkeypatch.setattr(actors.ragged, "JOINING_TOKENS", 9)
    _, prompts, done = sample(model)
    assert [joining for _, joining in widths if joining] == [2, 2, 1, 2, 1]  # of 3 1 | 7 2 | 11 | 5 1 | 8 tokens
    assert tokens(done) == tokens(at_once)
    assert_as_plain(model, prompts, done)


def test_end_at_once_and_end_never_side_by_side(table_policy, llama):
    model = llama(tie_word_embeddings=False, initializer_range=0.1)
    _, _, endless = sample(model, limits=[20] * 8)
    first = {one.ids[0] for one in endless}
    _, prompts, done = sample(model, limits=[20] * 8, eos=frozenset(int(i) for i in first))
    assert [len(one.ids) for one in done] == [1] * 8
    assert {one.finish for one in done} == {"stop"}
    some = frozenset({int(endless[0].ids[0]), int(endless[3].ids[7])})
    _, prompts, done = sample(model, limits=[20] * 8, eos=some)
    for one, other in zip(done, endless, strict=True):
        ends = [i for i, token in enumerate(other.ids) if int(token) in some]
        assert one.ids.tolist() == other.ids[: ends[0] + 1 if ends else 20].tolist()
    assert_as_plain(model, prompts, done)


def test_a_step_that_is_filled_up_gives_the_same_tokens(llama):
    """Rows and width rounded up, as for CUDA graphs: what fills up is seen by nobody."""
    model = llama(vocab_size=301)
    prompts, limits = prompts_of(301, LENGTHS * 3), LIMITS * 3
    _, _, plain = sample(model, prompts=prompts, limits=limits)
    engine = SamplingEngine(model, frozenset(), batch_sequences=7, continuous=True)
    engine._decoder.rounding = (4, 8)
    seeds = [sample_seed(0, i, 0) for i in range(len(prompts))]
    done = engine.sample(prompts, max_new_tokens=limits, seeds=seeds, temperature=1.0)
    assert tokens(done) == tokens(plain)
    assert_as_plain(model, prompts, done)


def test_what_a_call_with_broken_weights_left_behind_is_not_seen_by_the_next(llama):
    model = llama()
    _, prompts, done = sample(model)
    engine = SamplingEngine(model, frozenset())
    weight = model.model.layers[0].self_attn.v_proj.weight
    kept = weight.detach().clone()
    for values in (torch.full_like(kept, torch.nan), kept):
        with torch.no_grad():
            weight.copy_(values)
        engine.renew()
        seeds = [sample_seed(0, i, 0) for i in range(len(prompts))]
        again = engine.sample(prompts, max_new_tokens=LIMITS, seeds=seeds, temperature=1.0)
    assert tokens(again) == tokens(done)


def test_in_bfloat16_it_is_as_near_to_float32_as_the_own_forward(llama):
    exact, model = llama(vocab_size=301), llama(vocab_size=301).to(torch.bfloat16)
    texts = np.arange(3, 63, dtype=np.int32).reshape(3, 20)
    expected = np.stack([plain_logprobs(exact, text[:1], text[1:]) for text in texts])
    engine, own = SamplingEngine(model, frozenset()), SamplingEngine(model, frozenset(), kind="generic")
    assert engine.path == "llama"
    assert "bfloat16" in engine.reason
    gap, gap_of_own = (np.abs(e.logprobs(texts) - expected).mean() for e in (engine, own))
    assert gap < 1.2 * gap_of_own
