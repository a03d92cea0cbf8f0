"""The worker: what it makes of a request, and how it takes on weights. All models and buffers are real."""

import threading
import warnings
import weakref
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
import torch

from actors.engine import SamplingEngine
from actors.worker import PROBE_TOLERANCE, RolloutWorker
from common.errors import WeightsMismatchError
from common.flat_parameters import FlatParameters
from common.records import GenerateRequest, Identity, Probe, Prompt, WeightsHandle
from common.seeds import sample_seed
from common.weights import buffer_hash, flatten, rest_hash

EOS = 2
DRAWS = (5, 3, 11, 4, 8)


def prompt_of(draw_index, *, length=None, limit=None):
    rng = np.random.default_rng(draw_index)
    ids = rng.integers(3, 97, length or 1 + draw_index % 5).astype(np.int32)
    return Prompt(draw_index, draw_index * 7, ids, limit or 3 + draw_index % 6)


@torch.no_grad()
def probe_of(model):
    """The learner's logprobs of fixed ids, by the model's plain forward."""
    ids = torch.arange(4 * 12).reshape(4, 12) % 97
    log_p = torch.log_softmax(model(input_ids=ids, use_cache=False).logits[:, :-1], -1)
    logprobs = log_p.gather(-1, ids[:, 1:, None]).squeeze(-1)
    return Probe(ids.numpy().astype(np.int32), logprobs.numpy())


def handle_of(model, *, step=1, probe=None, lineage=0):
    buffer, manifest = flatten(model)
    return WeightsHandle(Identity(lineage, step), buffer, buffer_hash(buffer), manifest, probe)


def request_of(weights, draws=DRAWS, **changes):
    settings = {"chunk_index": 0, "attempt": 0, "fill": 0, "run_seed": 9, "temperature": 1.0}
    return GenerateRequest(prompts=tuple(prompt_of(d) for d in draws), weights=weights, **settings | changes)


def worker_of(model, fetched=None, **engine):
    def fetch(handle):
        if fetched is not None:
            fetched.append(handle.identity)
        return handle.ref

    return RolloutWorker(SamplingEngine(model, frozenset({EOS}), **engine), fetch=fetch, name="worker-7")


def tokens(chunk):
    return [r.response_ids.tolist() for r in chunk.rollouts]


@torch.no_grad()
def plain_logprobs(model, prompt, response):
    text = torch.from_numpy(np.concatenate([prompt, response]).astype(np.int64))[None]
    logits = model(input_ids=text, use_cache=False).logits[0, len(prompt) - 1 : -1]
    return torch.log_softmax(logits, -1)[torch.arange(len(response)), text[0, len(prompt) :]].numpy()


def assert_generated_by(model, chunk):
    for prompt, rollout in zip(chunk.prompts, chunk.rollouts, strict=True):
        expected = plain_logprobs(model, prompt.token_ids, rollout.response_ids)
        np.testing.assert_allclose(rollout.logprobs, expected, atol=1e-4)


def test_rollouts_come_in_the_order_of_the_prompts_with_their_draws_and_weights(llama):
    handle = handle_of(llama(), step=4)
    request = request_of(handle, attempt=2)
    chunk, stats = worker_of(llama(seed=1)).generate(request)
    assert [r.draw_index for r in chunk.rollouts] == list(DRAWS)
    assert chunk.prompts == request.prompts
    assert {(r.attempt, r.sample_index, r.identity) for r in chunk.rollouts} == {(2, 0, Identity(0, 4))}
    for prompt, rollout in zip(chunk.prompts, chunk.rollouts, strict=True):
        assert 1 <= len(rollout.response_ids) <= prompt.max_new_tokens
    assert (stats.identity, stats.weights_hash) == (Identity(0, 4), handle.hash)


def test_stats_count_what_the_chunk_holds(llama):
    chunk, stats = worker_of(llama()).generate(request_of(handle_of(llama()), draws=range(12), fill=4))
    assert stats.samples == len(chunk.rollouts) == 12
    assert stats.prompt_tokens == sum(len(p.token_ids) for p in chunk.prompts)
    assert stats.response_tokens == sum(len(r.response_ids) for r in chunk.rollouts)
    assert stats.response_lengths == tuple(len(r.response_ids) for r in chunk.rollouts)
    assert stats.stops == sum(r.finish == "stop" for r in chunk.rollouts)
    assert set(stats.seconds) >= {"fetch", "verify", "load", "pack", "generate"}


@pytest.mark.parametrize(("kind", "path"), [("auto", ("llama", "llama_packed")), ("generic", ("generic",))])
def test_a_worker_says_which_way_it_generates_and_why_not_a_faster_one(llama, kind, path):
    worker = worker_of(llama(), kind=kind)
    _, stats = worker.generate(request_of(handle_of(llama())))
    assert stats.engine in path
    told = worker.describe()["engine"]
    assert told.startswith(stats.engine)
    assert (": " in told) == (stats.engine != "llama_packed")


@pytest.mark.parametrize("fill", [1, 3, 11])
def test_fill_rows_are_thrown_away_and_change_nothing(llama, fill):
    handle = handle_of(llama())
    worker = worker_of(llama(), kind="generic")
    bare, _ = worker.generate(request_of(handle))
    widths = []
    hook = worker.engine.policy.register_forward_pre_hook(
        lambda _, args, kwargs: widths.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    filled, stats = worker.generate(request_of(handle, fill=fill))
    hook.remove()
    assert widths[0] == len(DRAWS) + fill, "the chunk was not brought to its size"
    assert len(filled.prompts) == len(filled.rollouts) == stats.samples == len(DRAWS)
    assert tokens(filled) == tokens(bare)


def test_seeds_follow_from_run_seed_draw_and_sample_alone(llama):
    # Traps 19 and 20.
    handle, worker = handle_of(llama()), worker_of(llama())
    chunk, _ = worker.generate(request_of(handle, run_seed=9, samples_per_prompt=2))
    assert [r.seed for r in chunk.rollouts] == [sample_seed(9, d, k) for d in DRAWS for k in (0, 1)]
    backwards, _ = worker.generate(request_of(handle, draws=DRAWS[::-1], chunk_index=8, samples_per_prompt=2))
    by_sample = {(r.draw_index, r.sample_index): r.response_ids.tolist() for r in chunk.rollouts}
    assert {(r.draw_index, r.sample_index): r.response_ids.tolist() for r in backwards.rollouts} == by_sample
    other, _ = worker.generate(request_of(handle, run_seed=10, samples_per_prompt=2))
    assert not set(map(tuple, tokens(other))) & {tuple(t) for t in tokens(chunk) if len(t) > 2}
    alone, _ = worker.generate(request_of(handle))
    assert tokens(alone) == tokens(chunk)[::2], "the first sample does not depend on how many there are"


def test_a_group_stands_together_with_its_prompt_and_its_samples_differ(llama):
    model = llama(initializer_range=0.05)
    request = request_of(handle_of(model), samples_per_prompt=3, fill=2)
    chunk, stats = worker_of(model).generate(request)
    assert [(r.draw_index, r.sample_index) for r in chunk.rollouts] == [(d, k) for d in DRAWS for k in range(3)]
    assert [p.draw_index for p in chunk.prompts] == [d for d in DRAWS for _ in range(3)]
    assert stats.samples == request.num_samples == 3 * len(DRAWS)
    assert stats.prompt_tokens == 3 * sum(len(p.token_ids) for p in request.prompts)
    for start in range(0, len(chunk.rollouts), 3):
        assert len({tuple(t) for t in tokens(chunk)[start : start + 3]}) == 3
    assert_generated_by(model, chunk)


def test_a_nucleus_is_sampled_from_with_its_own_logprobs(llama):
    model = llama()
    chunk, _ = worker_of(model).generate(request_of(handle_of(model), top_p=0.5))
    for prompt, rollout in zip(chunk.prompts, chunk.rollouts, strict=True):
        whole = plain_logprobs(model, prompt.token_ids, rollout.response_ids)
        assert (rollout.logprobs >= whole - 1e-4).all(), "what is left out is shared among the rest"
        assert (rollout.logprobs <= whole + np.log(2) + 1e-4).all(), "at least half is left"
        assert rollout.logprobs.sum() > whole.sum() + 1e-3


def test_equal_prompts_at_other_draws_get_other_responses(llama):
    # Trap 19.
    model = llama(initializer_range=0.05)
    same = tuple(replace(prompt_of(1, length=3, limit=8), draw_index=d) for d in range(8))
    chunk, _ = worker_of(model).generate(replace(request_of(handle_of(model)), prompts=same))
    assert len({tuple(t) for t in tokens(chunk)}) == 8


def test_another_attempt_is_noted_and_changes_nothing_else(llama):
    handle = handle_of(llama())
    first, _ = worker_of(llama(seed=1)).generate(request_of(handle, attempt=0))
    again, _ = worker_of(llama(seed=2)).generate(request_of(handle, attempt=1))
    assert tokens(again) == tokens(first)
    for a, b in zip(first.rollouts, again.rollouts, strict=True):
        assert a.logprobs.tobytes() == b.logprobs.tobytes()
        assert (a.seed, a.attempt, b.seed, b.attempt) == (b.seed, 0, a.seed, 1)


def test_weights_are_fetched_once_per_identity(llama):
    fetched = []
    worker, first = worker_of(llama(), fetched), handle_of(llama(), step=1)
    second = handle_of(llama(seed=1), step=2)
    for handle in (first, first, second, second, first):
        _, stats = worker.generate(request_of(handle))
        assert stats.identity == handle.identity
    assert fetched == [Identity(0, 1), Identity(0, 2), Identity(0, 1)]


def test_the_same_identity_with_other_content_is_fetched_again(llama):
    fetched = []
    worker = worker_of(llama(), fetched)
    worker.generate(request_of(handle_of(llama(), step=1)))
    chunk, _ = worker.generate(request_of(handle_of(llama(seed=1), step=1)))
    assert len(fetched) == 2
    assert_generated_by(llama(seed=1), chunk)


@pytest.mark.parametrize("tied", [True, False])
def test_responses_come_from_the_published_weights_tied_head_included(architecture, tied):
    # Trap 21.
    learner = architecture(seed=3, tie_word_embeddings=tied)
    buffer, manifest = flatten(learner)
    assert len(buffer) == sum(p.numel() for p in learner.parameters())
    assert sum(spec.shape == (97, 32) for spec in manifest) == (1 if tied else 2)
    chunk, stats = worker_of(architecture(seed=4, tie_word_embeddings=tied)).generate(
        request_of(handle_of(learner, probe=probe_of(learner)))
    )
    assert_generated_by(learner, chunk)
    assert stats.probe_gap < 1e-5


def test_a_corrupted_buffer_is_an_error_that_names_both_hashes(llama):
    # Trap 22: the hash is of what was published; what arrives must be that.
    handle = handle_of(llama())
    damaged = handle.ref.copy()
    damaged[1234] += 1e-3
    policy = llama(seed=1)
    before = buffer_hash(flatten(policy)[0])
    worker = worker_of(policy)
    with pytest.raises(WeightsMismatchError) as caught:
        worker.generate(request_of(replace(handle, ref=damaged)))
    assert f"{handle.hash:016x}" in str(caught.value)
    assert f"{buffer_hash(damaged):016x}" in str(caught.value)
    assert "worker-7" in str(caught.value)
    assert worker.identity is None
    assert buffer_hash(flatten(policy)[0]) == before, "damaged weights got into the model"


def test_weights_that_the_learner_goes_on_changing_do_not_change_under_way(llama):
    # Trap 22: an optimizer step between publishing and fetching.
    learner = llama()
    handle = handle_of(learner)
    with torch.no_grad():
        for parameter in learner.parameters():
            parameter += 0.1
    assert buffer_hash(handle.ref) == handle.hash
    chunk, stats = worker_of(llama(seed=1)).generate(request_of(handle))
    assert stats.weights_hash == handle.hash
    assert_generated_by(llama(), chunk)


def test_a_worker_keeps_nothing_of_the_buffer(llama):
    # Trap 22, the other side: the store may reuse the memory once the request is answered.
    handle, worker = handle_of(llama()), worker_of(llama(seed=1))
    first, _ = worker.generate(request_of(handle))
    handle.ref[:] = np.nan
    again, _ = worker.generate(request_of(handle))
    assert tokens(again) == tokens(first)


def test_a_missing_tensor_is_named(llama):
    # Trap 21: an untied head that nobody sends.
    worker = worker_of(llama(tie_word_embeddings=False))
    with pytest.raises(WeightsMismatchError, match=r"lack 'lm_head\.weight' \(1 tensors missing\)"):
        worker.generate(request_of(handle_of(llama(tie_word_embeddings=True))))


def test_an_unknown_tensor_is_named(llama):
    with pytest.raises(WeightsMismatchError, match=r"'lm_head\.weight'.* the worker has no such tensor"):
        worker_of(llama()).generate(request_of(handle_of(llama(tie_word_embeddings=False))))


def test_a_tensor_of_another_shape_is_named_with_both_shapes(llama):
    worker = worker_of(llama(intermediate_size=64))
    with pytest.raises(WeightsMismatchError, match=r"gate_proj.weight' has shape \(48, 32\).*\(64, 32\)"):
        worker.generate(request_of(handle_of(llama())))


def test_after_a_failed_load_the_model_is_of_no_version_and_loads_anew(llama):
    fetched = []
    worker, good = worker_of(llama(), fetched), handle_of(llama(seed=1), step=1)
    worker.generate(request_of(good))
    with pytest.raises(WeightsMismatchError):
        worker.generate(request_of(handle_of(llama(seed=2, intermediate_size=64), step=2)))
    chunk, _ = worker.generate(request_of(good))
    assert len(fetched) == 3
    assert_generated_by(llama(seed=1), chunk)


def with_stale_head(model):
    """A model whose head was tied once and is now a copy of its own that no manifest knows."""
    head = model.lm_head
    stale = head.weight.detach().clone()
    del head.weight
    head.register_buffer("weight", stale)
    return model


def test_the_probe_finds_a_tied_head_that_stayed_behind(llama):
    # Trap 21: every tensor of the manifest arrives, and the hash is right.
    learner = llama(seed=1)
    worker = worker_of(with_stale_head(llama(seed=0)))
    with pytest.raises(WeightsMismatchError, match=r"worker-7: at weights 0\.1 the probe prompt's logprobs differ"):
        worker.generate(request_of(handle_of(learner, probe=probe_of(learner))))


@pytest.mark.parametrize(
    "change", [{"rms_norm_eps": 0.3}, {"rope_parameters": {"rope_type": "default", "rope_theta": 50.0}}]
)
def test_the_probe_finds_a_model_that_differs_in_what_weights_do_not_carry(llama, change):
    learner = llama(seed=1)
    worker = worker_of(llama(seed=0, **change))
    with pytest.raises(WeightsMismatchError, match="probe"):
        worker.generate(request_of(handle_of(learner, probe=probe_of(learner))))


def test_the_probe_finds_one_altered_parameter(llama):
    learner = llama(seed=1)
    probe = probe_of(learner)
    with torch.no_grad():
        learner.model.layers[1].mlp.down_proj.weight[3, 5] += 0.5  # after the probe: as if it were altered in loading
    with pytest.raises(WeightsMismatchError, match="probe"):
        worker_of(llama()).generate(request_of(handle_of(learner, probe=probe)))


def test_a_probe_that_is_not_a_number_is_no_match(llama):
    learner = llama(seed=1)
    probe = replace(probe_of(learner), logprobs=np.full((4, 11), np.nan, dtype=np.float32))
    with pytest.raises(WeightsMismatchError, match="nan nats"):
        worker_of(llama()).generate(request_of(handle_of(learner, probe=probe)))


def test_weights_that_failed_the_probe_are_not_served_when_asked_again(llama):
    learner = llama(seed=1)
    worker, handle = worker_of(with_stale_head(llama(seed=0))), handle_of(learner, probe=probe_of(learner))
    for _ in range(2):
        with pytest.raises(WeightsMismatchError, match="probe"):
            worker.generate(request_of(handle))
    assert worker.identity is None


def test_reduced_precision_reports_its_gap_and_goes_on(llama):
    learner = llama(seed=1)
    handle = handle_of(learner, probe=probe_of(learner))
    chunk, stats = worker_of(llama().to(torch.bfloat16)).generate(request_of(handle))
    assert len(chunk.rollouts) == len(DRAWS)
    assert stats.probe_gap > PROBE_TOLERANCE


def from_store(handle):
    """Its buffer as Ray's object store hands it out: at a multiple of 64 bytes, not to be written."""
    memory = np.zeros(len(handle.ref) + 16, dtype=np.float32)
    skipped = -(memory.ctypes.data // 4) % 16
    buffer = memory[skipped : skipped + len(handle.ref)]
    buffer[:] = handle.ref
    buffer.setflags(write=False)
    return replace(handle, ref=buffer)


@pytest.mark.parametrize("kind", ["auto", "generic"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_arrays_that_arrive_read_only_are_never_written_nor_warned_about(llama, dtype, kind):
    # Trap 29: what Ray's object store hands out may not be written, but torch would, into the weights of all workers.
    learner = llama(seed=1)
    handle = from_store(handle_of(learner, probe=probe_of(learner)))
    request = request_of(handle)
    arrays = [handle.ref, handle.probe.token_ids, handle.probe.logprobs, *(p.token_ids for p in request.prompts)]
    for array in arrays:
        array.setflags(write=False)
    policy = llama().to(dtype)
    worker = RolloutWorker(SamplingEngine(policy, frozenset({EOS}), kind=kind), fetch=lambda handle: handle.ref)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            worker.generate(request)
    assert buffer_hash(handle.ref) == handle.hash
    shared = [np.shares_memory(p.detach().float().numpy(), handle.ref) for p in policy.parameters()]
    assert all(shared) if dtype == torch.float32 else not any(shared)


def test_a_buffer_that_may_still_be_written_to_is_copied(llama):
    handle, policy = handle_of(llama(seed=1)), llama()
    worker_of(policy).generate(request_of(handle))
    handle.ref[:] = 0
    assert all(
        torch.equal(ours, theirs) for ours, theirs in zip(policy.parameters(), llama(seed=1).parameters(), strict=True)
    )


def test_what_does_not_travel_stays_where_it_was_when_the_rest_lies_on_a_buffer(llama):
    handle, policy = from_store(frozen_below_the_last_layer(llama())), llama()
    worker_of(policy).generate(request_of(handle))
    lies = {name: np.shares_memory(p.detach().numpy(), handle.ref) for name, p in policy.named_parameters()}
    assert {name for name, on_buffer in lies.items() if on_buffer} == {spec.name for spec in handle.manifest}


def test_prefetched_weights_leave_the_model_alone_until_a_request_names_them(llama):
    fetched = []
    worker, first, second = worker_of(llama(), fetched), handle_of(llama(), step=1), handle_of(llama(seed=1), step=2)
    before, _ = worker.generate(request_of(first))
    assert set(worker.prefetch(second)) == {"fetch", "verify"}
    same, _ = worker.generate(request_of(first))
    assert tokens(same) == tokens(before)
    chunk, stats = worker.generate(request_of(second))
    assert_generated_by(llama(seed=1), chunk)
    assert fetched == [Identity(0, 1), Identity(0, 2)]
    assert set(stats.seconds) == {"wait", "load", "pack", "probe", "generate"}, "only the copy is left"
    assert set(stats.beside) == {"fetch", "verify"}


def test_other_weights_than_the_newest_are_fetched_as_ever_once_a_call_has_begun(llama):
    fetched = []
    worker = worker_of(llama(), fetched)
    handles = [handle_of(llama(seed=seed), step=seed) for seed in range(4)]
    for handle in handles[1:3]:
        worker.prefetch(handle)
    chunk, stats = worker.generate(request_of(handles[3]))
    assert_generated_by(llama(seed=3), chunk)
    assert stats.beside == {}
    worker.generate(request_of(handles[2]))
    worker.generate(request_of(handles[1]))
    assert [identity.step for identity in fetched] == [1, 2, 3, 1]


def test_what_a_waiting_call_names_stays_however_many_newer_weights_come(llama):
    fetched = []
    worker = worker_of(llama(), fetched)
    handles = [handle_of(llama(seed=seed), step=seed) for seed in range(5)]
    worker.generate(request_of(handles[0]))
    for handle in handles[1:]:
        worker.prefetch(handle)
    waiting, stats = worker.generate(request_of(handles[1]))
    assert_generated_by(llama(seed=1), waiting)
    assert set(stats.beside) == {"fetch", "verify"}
    last, _ = worker.generate(request_of(handles[4]))
    assert_generated_by(llama(seed=4), last)
    assert [identity.step for identity in fetched] == [0, 1, 2, 3, 4]


def test_once_a_call_begins_that_needs_none_what_is_newest_then_stays(llama):
    fetched = []
    worker = worker_of(llama(), fetched)
    handles = [handle_of(llama(seed=seed), step=seed) for seed in range(5)]
    worker.generate(request_of(handles[0]))
    for handle in handles[1:3]:
        worker.prefetch(handle)
    worker.generate(request_of(handles[0]))
    for handle in handles[3:]:
        worker.prefetch(handle)
    worker.generate(request_of(handles[2]))
    worker.generate(request_of(handles[4]))
    assert [identity.step for identity in fetched] == [0, 1, 2, 3, 4]


def test_however_many_weights_come_two_buffers_are_held_at_most_the_one_on_its_way_included(llama):
    brought, alive = [], []

    def fetch(handle):
        buffer = handle.ref.copy()
        brought.append(weakref.ref(buffer))
        alive.append(sum(one() is not None for one in brought))
        return buffer

    worker = RolloutWorker(SamplingEngine(llama(), frozenset({EOS})), fetch=fetch)
    handle = handle_of(llama(seed=1))
    for step in range(5):
        worker.prefetch(replace(handle, identity=Identity(0, step)))
    assert alive == [1, 2, 2, 2, 2]
    worker.generate(request_of(replace(handle, identity=Identity(0, 4))))
    assert not any(one() is not None for one in brought)


@contextmanager
def slow_worker(model):
    """A worker whose fetches of later weights than the first wait for `may_end`."""
    begun, may_end, fetched = threading.Event(), threading.Event(), []

    def fetch(asked):
        fetched.append(asked.identity)
        if asked.identity.step > 1:
            begun.set()
            assert may_end.wait(60)
        return asked.ref

    worker = RolloutWorker(SamplingEngine(model, frozenset({EOS})), fetch=fetch)
    with ThreadPoolExecutor(2) as pool:
        try:
            yield worker, pool, begun, may_end, fetched
        finally:
            may_end.set()


def test_a_request_waits_for_a_prefetch_of_its_weights_that_is_under_way(llama):
    handle = handle_of(llama(seed=1), step=2)
    with slow_worker(llama()) as (worker, pool, begun, may_end, fetched):
        ahead = pool.submit(worker.prefetch, handle)
        assert begun.wait(60)
        answer = pool.submit(worker.generate, request_of(handle))
        may_end.set()
        ahead.result(60)
        chunk, _ = answer.result(60)
    assert len(fetched) == 1
    assert_generated_by(llama(seed=1), chunk)


def test_a_request_whose_weights_are_here_does_not_wait_for_later_ones(llama):
    first, second = handle_of(llama(seed=1), step=1), handle_of(llama(seed=2), step=2)
    with slow_worker(llama()) as (worker, pool, begun, may_end, fetched):
        worker.prefetch(first)
        ahead = pool.submit(worker.prefetch, second)
        assert begun.wait(60)
        chunk, _ = pool.submit(worker.generate, request_of(first)).result(60)
        assert not ahead.done()
        may_end.set()
        ahead.result(60)
        worker.generate(request_of(second))
    assert_generated_by(llama(seed=1), chunk)
    assert [identity.step for identity in fetched] == [1, 2]


def test_a_prefetch_that_fails_leaves_a_request_to_fetch_by_itself(llama):
    handle, failures = handle_of(llama(seed=1)), [OSError("the node is cut off")]

    def fetch(asked):
        if failures:
            raise failures.pop()
        return asked.ref

    worker = RolloutWorker(SamplingEngine(llama(), frozenset({EOS})), fetch=fetch)
    with pytest.raises(OSError, match="cut off"):
        worker.prefetch(handle)
    chunk, stats = worker.generate(request_of(handle))
    assert_generated_by(llama(seed=1), chunk)
    assert stats.beside == {}


def test_a_prefetch_that_is_damaged_is_an_error_and_is_not_kept(llama):
    handle, worker = handle_of(llama(seed=1)), worker_of(llama())
    damaged = handle.ref.copy()
    damaged[7] += 1
    with pytest.raises(WeightsMismatchError, match="changed on its way"):
        worker.prefetch(replace(handle, ref=damaged))
    chunk, _ = worker.generate(request_of(handle))
    assert_generated_by(llama(seed=1), chunk)


def frozen_below_the_last_layer(model, change=0.1):
    """A learner whose upper part has moved, and its handle, in which the rest is not."""
    named = [(name, p) for name, p in model.named_parameters() if "layers.2" in name or name == "model.norm.weight"]
    with torch.no_grad():
        for _, parameter in named:
            parameter += change
    flat = FlatParameters(named)
    sent = dict(named)
    hashes = {name: rest_hash(model, sent, getattr(torch, name)) for name in ("float32", "bfloat16")}
    buffer = flat.buffer().copy()
    return WeightsHandle(Identity(0, 5), buffer, buffer_hash(buffer), flat.manifest, probe_of(model), hashes)


@pytest.mark.parametrize("before", ["fresh", "the same run", "another model"])
def test_frozen_tensors_do_not_travel_and_the_worker_has_them(llama, before):
    learner = llama()
    handle = frozen_below_the_last_layer(learner)
    worker = worker_of(llama())
    if before == "the same run":
        worker.generate(request_of(handle_of(llama(), step=4)))
        worker.generate(request_of(replace(frozen_below_the_last_layer(llama(), 0.2), identity=Identity(0, 3))))
    if before == "another model":
        worker.generate(request_of(handle_of(llama(seed=1), step=4)))
        with pytest.raises(WeightsMismatchError, match=r"worker-7: weights 0\.5 leave out \d+ frozen tensors"):
            worker.generate(request_of(handle))
        assert worker.identity == Identity(0, 4), "nothing was loaded"
        worker.generate(request_of(handle_of(llama(), step=4, lineage=1)))
    chunk, stats = worker.generate(request_of(handle))
    assert stats.probe_gap < 1e-5
    assert_generated_by(learner, chunk)


def test_a_worker_whose_frozen_tensors_differ_says_so_and_what_to_look_at(llama):
    handle = frozen_below_the_last_layer(llama())
    changed = llama()
    with torch.no_grad():
        changed.model.embed_tokens.weight[5, 5] += 1e-4
    with pytest.raises(WeightsMismatchError, match=r"as 'model\.embed_tokens.*must be those .* the same model folder"):
        worker_of(changed).generate(request_of(handle))


def test_a_worker_in_less_precision_compares_its_frozen_tensors_in_its_own(llama):
    handle = frozen_below_the_last_layer(llama())
    worker_of(llama().bfloat16()).generate(request_of(handle))
    with pytest.raises(WeightsMismatchError, match="bfloat16"):
        worker_of(llama(seed=1).bfloat16()).generate(request_of(handle))
