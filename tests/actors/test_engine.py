"""The sampling engine against the plain forward of the model, one row and one token at a time."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from transformers import GenerationConfig

from actors.engine import SamplingEngine
from actors.sampling import draw
from common.modeling import load_policy
from common.seeds import sample_seed

EOS = 2
NEVER_BY_CHANCE = 1e-6
LENGTHS = (3, 1, 7, 2, 11, 5, 1, 8)
LIMITS = (9, 14, 1, 12, 3, 6, 2, 10)


def ragged_prompts(vocab_size, lengths=LENGTHS, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.integers(3, vocab_size, n).astype(np.int32) for n in lengths]


def seeds_of(count, run_seed=0):
    return [sample_seed(run_seed, i, 0) for i in range(count)]


def sample(policy, prompts, limits, *, seeds=None, temperature=1.0, eos=frozenset({EOS}), kind="auto", **more):
    engine = SamplingEngine(policy, eos, kind=kind)
    seeds = seeds_of(len(prompts)) if seeds is None else seeds
    return engine.sample(prompts, max_new_tokens=limits, seeds=seeds, temperature=temperature, **more)


@torch.no_grad()
def plain_logprobs(model, prompt, response, temperature=1.0):
    """One forward over the whole text: no cache, no batch, no code of ours."""
    text = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))[None]
    logits = model(input_ids=text, use_cache=False).logits[0, len(prompt) - 1 : -1].double()
    return torch.log_softmax(logits / temperature, -1)[torch.arange(len(response)), text[0, len(prompt) :]].numpy()


@torch.no_grad()
def plain_sample(model, prompt, limit, seed, temperature=1.0):
    """The slow loop: the whole text through the model for every token."""
    ids = [int(t) for t in prompt]
    while len(ids) - len(prompt) < limit:
        logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1:]
        slot = np.array([len(ids) - len(prompt)])
        ids.append(int(draw(logits, np.array([seed], dtype=np.uint64), slot, temperature)[0]))
        if ids[-1] == EOS:
            break
    return ids[len(prompt) :]


def tokens(sampled):
    return [s.ids.tolist() for s in sampled]


@pytest.mark.parametrize("vocab_size", [97, 2000])
@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_logprobs_are_those_of_the_plain_forward(architecture, vocab_size, temperature):
    # Traps 3, 4 and 13: ragged prompts without padding, each token's own logits, tempered before the softmax.
    model = architecture(vocab_size=vocab_size)
    prompts = ragged_prompts(vocab_size)
    sampled = sample(model, prompts, LIMITS, temperature=temperature)
    for prompt, one in zip(prompts, sampled, strict=True):
        assert one.logprobs.dtype == np.float32
        np.testing.assert_allclose(one.logprobs, plain_logprobs(model, prompt, one.ids, temperature), atol=1e-4)


@pytest.mark.parametrize("vocab_size", [97, 1031])
def test_tokens_are_those_of_a_slow_loop_over_single_rows(architecture, vocab_size):
    model = architecture(vocab_size=vocab_size)
    prompts, seeds = ragged_prompts(vocab_size), seeds_of(len(LENGTHS))
    expected = [plain_sample(model, p, n, s) for p, n, s in zip(prompts, LIMITS, seeds, strict=True)]
    assert tokens(sample(model, prompts, LIMITS, seeds=seeds)) == expected


@pytest.fixture(scope="module")
def together(llama):
    model, prompts, seeds = llama(seed=1), ragged_prompts(97, seed=5), seeds_of(len(LENGTHS))
    return model, prompts, seeds, sample(model, prompts, LIMITS, seeds=seeds)


@settings(max_examples=15, deadline=None)
@given(rows=st.lists(st.integers(0, len(LENGTHS) - 1), min_size=1, max_size=8, unique=True))
def test_a_row_does_not_depend_on_its_neighbours(together, rows):
    model, prompts, seeds, all_rows = together
    some = sample(model, [prompts[i] for i in rows], [LIMITS[i] for i in rows], seeds=[seeds[i] for i in rows])
    for i, one in zip(rows, some, strict=True):
        assert one.ids.tolist() == all_rows[i].ids.tolist()
        assert one.finish == all_rows[i].finish
        np.testing.assert_allclose(one.logprobs, all_rows[i].logprobs, atol=1e-4)


def test_rows_leave_the_batch_when_done_and_the_others_go_on_as_before(architecture):
    model = architecture()
    prompts, seeds, limits = ragged_prompts(97, (4,) * 8), seeds_of(8), (1, 2, 2, 3, 5, 8, 13, 21)
    widths = []
    hook = model.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    together = sample(model, prompts, limits, seeds=seeds, kind="generic")
    hook.remove()
    assert widths[0] == 8
    assert len(set(widths)) > 3, "the batch was never compacted"
    assert widths == sorted(widths, reverse=True)
    alone = [sample(model, [p], [n], seeds=[s])[0] for p, n, s in zip(prompts, limits, seeds, strict=True)]
    assert tokens(together) == tokens(alone)


@pytest.fixture
def speaker(table_policy):
    """Says 3, 4 or 5 and ends with 2 at odds of one in four; 0, 1 and 6 to 9 are words of prompts alone."""
    row = [0, 0, 0.25, 0.25, 0.25, 0.25, 0, 0, 0, 0]
    return table_policy([row] * 10)


PROMPT_WORDS = (0, 1, 6, 7, 8, 9)


def prompts_of_other_words(lengths):
    return [np.resize(PROMPT_WORDS, n).astype(np.int32) for n in lengths]


def test_a_response_that_stops_has_one_eos_at_its_end(speaker):
    sampled = sample(speaker, prompts_of_other_words(LENGTHS * 4), LIMITS * 4)
    assert {s.finish for s in sampled} == {"stop", "length"}
    for one in sampled:
        ends = np.flatnonzero(one.ids == EOS).tolist()
        assert ends == ([len(one.ids) - 1] if one.finish == "stop" else [])
        assert len(one.logprobs) == len(one.ids)


def test_a_response_cut_by_its_limit_has_no_eos_forced_on_it(speaker):
    # Trap 7: what is stored is what was sampled.
    endless = speaker
    with torch.no_grad():
        endless.table[:, EOS] = -torch.inf
    limits = list(LIMITS)
    sampled = sample(endless, prompts_of_other_words(LENGTHS), limits)
    assert [len(s.ids) for s in sampled] == limits
    assert {s.finish for s in sampled} == {"length"}
    assert not any(EOS in s.ids for s in sampled)


def test_an_eos_in_the_last_slot_is_a_stop(table_policy):
    ends_at_once = table_policy([[0.0, 0.0, 1.0]] * 3)
    (one,) = sample(ends_at_once, [np.array([0, 1], dtype=np.int32)], [1])
    assert (one.ids.tolist(), one.finish, one.logprobs.tolist()) == ([EOS], "stop", [0.0])


def test_no_word_of_a_prompt_gets_into_a_response_when_others_end_early(speaker):
    # The seed's bug: rows that ended early were padded, and the slice took in their prompts.
    sampled = sample(speaker, prompts_of_other_words((1, 20, 2, 15, 3, 9, 1, 20)), [8] * 8)
    assert any(s.finish == "stop" and len(s.ids) < 3 for s in sampled)
    for one in sampled:
        assert set(one.ids.tolist()) <= {2, 3, 4, 5}
        assert 1 <= len(one.ids) <= 8


@pytest.mark.parametrize("limit", [1, 5])
def test_a_prompt_of_one_token_and_a_response_of_one_token_work(architecture, limit):
    model = architecture()
    prompts = [np.array([7], dtype=np.int32)]
    (one,) = sample(model, prompts, [limit])
    assert one.ids.tolist() == plain_sample(model, prompts[0], limit, seeds_of(1)[0])
    assert one.ids.dtype == np.int32


def test_a_text_may_fill_the_last_position_of_the_model(gpt2):
    model = gpt2(n_positions=12)
    prompts = ragged_prompts(97, (4, 10))
    sampled = sample(model, prompts, [8, 2], eos=frozenset({96}))
    assert [len(s.ids) for s in sampled] == [8, 2]


def test_a_low_temperature_takes_the_most_likely_token(architecture):
    model = architecture()
    prompts = ragged_prompts(97)
    for prompt, one in zip(prompts, sample(model, prompts, LIMITS, temperature=1e-4), strict=True):
        text = torch.from_numpy(np.concatenate([prompt, one.ids]).astype(np.int64))[None]
        greedy = model(input_ids=text).logits[0, len(prompt) - 1 : -1].argmax(-1)
        assert one.ids.tolist() == greedy.tolist()


def test_recorded_logprobs_are_of_the_tempered_distribution(table_policy):
    # Trap 13: at T = 0.5 the probabilities are squared and normalised.
    p = np.array([0.0, 0.6, 0.1, 0.3])
    sampled = sample(table_policy([p] * 4), [np.array([0], dtype=np.int32)] * 64, [4] * 64, temperature=0.5)
    tempered = np.log(np.maximum(p**2 / (p**2).sum(), 1e-300))
    assert {t for s in sampled for t in s.ids} == {1, 2, 3}
    for one in sampled:
        np.testing.assert_allclose(one.logprobs, tempered[one.ids], rtol=1e-5)


def test_a_generation_config_in_the_model_folder_changes_nothing(llama, tmp_path):
    # Trap 14.
    model = llama(vocab_size=97)
    prompts = ragged_prompts(97)
    before = sample(model, prompts, LIMITS)
    model.generation_config = GenerationConfig(
        top_k=3, top_p=0.5, repetition_penalty=1.8, temperature=0.2, do_sample=True, max_new_tokens=2, eos_token_id=5
    )
    model.save_pretrained(tmp_path)
    loaded = load_policy(str(tmp_path))
    assert (loaded.generation_config.top_k, loaded.generation_config.repetition_penalty) == (3, 1.8)
    after = sample(loaded, prompts, LIMITS)
    assert tokens(after) == tokens(before)
    for prompt, one in zip(prompts, after, strict=True):
        np.testing.assert_allclose(one.logprobs, plain_logprobs(model, prompt, one.ids), atol=1e-4)


def test_a_pad_token_that_is_also_eos_ends_a_response_and_keeps_its_logprob(llama):
    # Trap 5, the sampler's side: masks never come from comparing ids, so that nothing is lost or cut.
    model = llama(pad_token_id=EOS, eos_token_id=EOS, tie_word_embeddings=False, initializer_range=0.1)
    model.lm_head.weight.data[EOS] = 0.5 * model.lm_head.weight.data[3:9].sum(0)
    prompts = [np.array([5, EOS, 9, EOS], dtype=np.int32), np.array([EOS], dtype=np.int32)] * 16
    sampled = sample(model, prompts, [60] * 32)
    stopped = [(p, s) for p, s in zip(prompts, sampled, strict=True) if s.finish == "stop"]
    assert len(stopped) >= 4
    for prompt, one in stopped:
        assert one.ids.tolist().count(EOS) == 1
        assert one.ids[-1] == EOS
        np.testing.assert_allclose(one.logprobs, plain_logprobs(model, prompt, one.ids), atol=1e-4)


def test_any_of_several_eos_ids_ends_a_response(speaker):
    sampled = sample(speaker, prompts_of_other_words(LENGTHS), [40] * 8, eos=frozenset({2, 5}))
    assert {int(s.ids[-1]) for s in sampled} == {2, 5}
    assert not any({2, 5} & set(s.ids[:-1].tolist()) for s in sampled)


def test_equal_seeds_give_equal_tokens_and_other_seeds_others(llama):
    model, prompts = llama(initializer_range=0.05), ragged_prompts(97)
    first = sample(model, prompts, [12] * 8)
    assert tokens(sample(model, prompts, [12] * 8)) == tokens(first)
    assert tokens(sample(model, prompts, [12] * 8, seeds=seeds_of(8, run_seed=1))) != tokens(first)


def test_workers_with_the_same_prompt_and_other_draws_sample_different_texts(llama):
    # Trap 19.
    prompts = [np.array([5, 6], dtype=np.int32)] * 16
    sampled = sample(llama(initializer_range=0.05), prompts, [8] * 16)
    assert len({tuple(s.ids) for s in sampled}) == 16


def test_noise_belongs_to_the_slot_in_the_response_whatever_the_prompt_before_it(table_policy):
    policy = table_policy(np.full((10, 10), 0.1))
    prompts = prompts_of_other_words((1, 5, 17))
    assert len({tuple(s.ids) for s in sample(policy, prompts, [10] * 3, seeds=[123] * 3)}) == 1


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_sampled_tokens_are_distributed_as_the_softmax(table_policy, temperature):
    p = np.array([0.4, 0.3, 0.15, 0.1, 0.04, 0.01])
    sampled = sample(table_policy([p] * 6), [np.array([0], dtype=np.int32)] * 6000, [1] * 6000, temperature=temperature)
    counts = np.bincount([s.ids[0] for s in sampled], minlength=6)
    expected = p ** (1 / temperature)
    assert chisquare(counts, 6000 * expected / expected.sum()).pvalue > NEVER_BY_CHANCE


def test_a_nucleus_is_sampled_from_as_its_truncated_distribution_and_keeps_its_logprobs(table_policy):
    p = np.array([0.4, 0.3, 0.15, 0.1, 0.04, 0.01])
    sampled = sample(table_policy([p] * 6), [np.array([0], dtype=np.int32)] * 6000, [1] * 6000, top_p=0.8, eos={9})
    ids = np.array([s.ids[0] for s in sampled])
    expected = p[:3] / p[:3].sum()
    assert chisquare(np.bincount(ids), 6000 * expected).pvalue > NEVER_BY_CHANCE
    np.testing.assert_allclose([s.logprobs[0] for s in sampled], np.log(expected)[ids], rtol=1e-5)


def test_the_second_token_is_distributed_as_the_softmax_given_the_first(table_policy):
    p = np.array([[0.5, 0.25, 0.25], [0.1, 0.2, 0.7], [0.6, 0.3, 0.1]])
    sampled = sample(table_policy(p), [np.array([1], dtype=np.int32)] * 6000, [2] * 6000, eos=frozenset({9}))
    pairs = np.array([s.ids for s in sampled])
    counts = np.zeros((3, 3))
    np.add.at(counts, (pairs[:, 0], pairs[:, 1]), 1)
    assert chisquare(counts.ravel(), (6000 * p[1][:, None] * p).ravel()).pvalue > NEVER_BY_CHANCE
