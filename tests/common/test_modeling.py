"""The policy with its value head against the plain forward of the Hugging Face model inside it."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from transformers import PreTrainedTokenizerFast

from common.errors import ConfigError
from common.model_config import FreshModel
from common.modeling import (
    PolicyWithValueHead,
    add_embedding_gradient_in_place,
    decoder_layers,
    freeze_below,
    fresh_policy,
    load_policy,
    resolve_device,
    resolve_dtype,
    twin_trunk,
    without_dropout,
)
from common.text import train_word_tokenizer

LENGTHS = ((3, 5), (1, 1), (7, 2), (2, 9), (4, 4))
"""(prompt, response) tokens of each row; the widest text is not the one with the longest response."""


def padded(lengths=LENGTHS, extra=0, pad_id=0, seed=0):
    """[B, T] ids, prompt and response lengths; padding on the right."""
    rng = np.random.default_rng(seed)
    ids = np.full((len(lengths), max(map(sum, lengths)) + extra), pad_id, dtype=np.int64)
    for i, (prompt, response) in enumerate(lengths):
        ids[i, : prompt + response] = rng.integers(1, 97, prompt + response)
    return torch.from_numpy(ids), torch.tensor([p for p, _ in lengths]), torch.tensor([r for _, r in lengths])


def with_random_values(policy, value_trunk=None):
    model = PolicyWithValueHead(policy, value_trunk=value_trunk)
    nn.init.normal_(model.value_head.weight, generator=torch.Generator().manual_seed(0))
    nn.init.constant_(model.value_head.bias, 0.3)
    return model


@torch.no_grad()
def run(model, ids, prompts, responses, temperature=1.0, slots=None):
    return model(ids, prompts, responses, slots or int(responses.max()), temperature)


@torch.no_grad()
def plain(model, row, prompt, response, temperature):
    """One row without padding through the bare policy: logprobs, entropy, values and the value after the end."""
    out = model.policy(input_ids=row[None, : prompt + response], output_hidden_states=True)
    log_p = torch.log_softmax(out.logits[0].double() / temperature, -1)
    before = torch.arange(prompt - 1, prompt + response - 1)
    values = out.hidden_states[-1][0] @ model.value_head.weight[0] + model.value_head.bias
    entropy = -(log_p.exp() * log_p).sum(-1)
    return log_p[before, row[before + 1]], entropy[before], values[before], values[prompt + response - 1]


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_every_output_is_that_of_the_plain_forward_of_each_row_alone(architecture, temperature):
    # Traps 3, 4 and 13: padding, the next-token shift and the temperature.
    model = with_random_values(architecture())
    ids, prompts, responses = padded()
    out = run(model, ids, prompts, responses, temperature)
    for i, (prompt, response) in enumerate(LENGTHS):
        logprobs, entropy, values, last = plain(model, ids[i], prompt, response, temperature)
        torch.testing.assert_close(out.logprobs[i, :response].double(), logprobs, atol=1e-4, rtol=0)
        torch.testing.assert_close(out.entropy[i, :response].double(), entropy, atol=1e-4, rtol=0)
        torch.testing.assert_close(out.values[i, :response], values, atol=1e-4, rtol=0)
        torch.testing.assert_close(out.last_values[i], last, atol=1e-4, rtol=0)


@pytest.fixture(scope="module")
def narrow(architecture):
    model = with_random_values(architecture())
    return model, run(model, *padded())


@settings(max_examples=12, deadline=None)
@given(extra=st.integers(0, 20), pad_id=st.sampled_from([0, 2, 96]), more_slots=st.integers(0, 6))
def test_right_padding_of_any_amount_and_id_changes_no_live_slot(narrow, extra, pad_id, more_slots):
    # Traps 3, 5 and 11; 2 is the EOS id.
    model, expected = narrow
    ids, prompts, responses = padded(extra=extra, pad_id=pad_id)
    slots = int(responses.max())
    out = run(model, ids, prompts, responses, slots=slots + more_slots)
    live = torch.arange(slots)[None, :] < responses[:, None]
    for name in ("logprobs", "entropy", "values"):
        found = getattr(out, name)
        assert found.shape == (len(LENGTHS), slots + more_slots)
        torch.testing.assert_close(found[:, :slots][live], getattr(expected, name)[live], atol=1e-4, rtol=0)
    torch.testing.assert_close(out.last_values, expected.last_values, atol=1e-4, rtol=0)


def test_no_gradient_flows_from_padding(architecture):
    # Traps 9 and 10: what follows a text has no part in its loss.
    model = with_random_values(architecture())
    ids, prompts, responses = padded(((3, 4), (2, 2)), extra=5)
    ids[:, 7:] = 96  # no row holds 96 elsewhere
    assert not (ids[:, :7] == 96).any()
    live = torch.arange(4)[None, :] < responses[:, None]
    seen = model.policy.get_input_embeddings()
    used = []
    hook = seen.register_forward_hook(lambda _, args, out: (out.retain_grad(), used.append(out))[0])
    out = model(ids, prompts, responses, 4, 1.0)
    (out.logprobs[live].sum() + out.values[live].sum() + out.last_values.sum()).backward()
    hook.remove()
    grad = used[0].grad.abs().sum(-1)
    total = prompts + responses
    for i, length in enumerate(total.tolist()):
        assert grad[i, :length].min() > 0
        assert grad[i, length:].sum() == 0


def test_dropout_of_the_configuration_is_off(architecture):
    # Trap 2: resid_pdrop, embd_pdrop, attn_pdrop and attention_dropout are 0.5.
    policy = architecture().train()
    ids = padded()[0]
    with torch.no_grad():
        assert not torch.equal(policy(input_ids=ids).logits, policy(input_ids=ids).logits), "dropout was never on"
    model = with_random_values(policy)
    assert not any(module.training for module in model.policy.modules())
    assert {module.p for module in model.modules() if isinstance(module, nn.Dropout)} <= {0.0}
    first, second = run(model, *padded()), run(model, *padded())
    assert torch.equal(first.logprobs, second.logprobs)
    assert torch.equal(first.values, second.values)


def test_dropout_modules_stay_off_even_in_training_mode(gpt2):
    # Trap 2: whoever calls .train() later.
    model = with_random_values(gpt2())
    expected = run(model, *padded())
    model.train()
    assert torch.equal(run(model, *padded()).logprobs, expected.logprobs)


def test_a_policy_loaded_from_disk_has_no_dropout_and_the_same_logits(architecture, tmp_path):
    policy = architecture()
    policy.save_pretrained(tmp_path)
    loaded, ids = load_policy(str(tmp_path)), padded()[0]
    assert not loaded.training
    with torch.no_grad():
        assert torch.equal(loaded(input_ids=ids).logits, without_dropout(policy)(input_ids=ids).logits)


def test_values_are_zero_at_the_start_and_take_gradients(architecture):
    model = PolicyWithValueHead(architecture())
    ids, prompts, responses = padded()
    out = model(ids, prompts, responses, 9, 1.0)
    assert torch.count_nonzero(out.values) == torch.count_nonzero(out.last_values) == 0
    (out.values - 1).square().sum().backward()
    assert model.value_head.weight.grad.abs().sum() > 0
    assert model.value_head.bias.grad.item() < 0


def test_a_new_value_head_leaves_logprobs_as_they_were(architecture):
    policy = architecture()
    assert torch.equal(
        run(PolicyWithValueHead(policy), *padded()).logprobs, run(with_random_values(policy), *padded()).logprobs
    )


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_freezing_leaves_exactly_the_top_layers_and_the_final_norm(architecture, kept):
    policy = architecture()
    freeze_below(policy, kept)
    trainable = {name for name, p in policy.named_parameters() if p.requires_grad}
    stack, final = {
        "llama": ("model.layers.", "model.norm."),
        "gpt2": ("transformer.h.", "transformer.ln_f."),
    }[policy.config.model_type]
    tops = tuple(f"{stack}{i}." for i in range(3 - kept, 3))
    expected = {name for name, _ in policy.named_parameters() if name.startswith((*tops, final))}
    assert trainable == expected
    assert any(name.startswith(final) for name in trainable)


def test_a_frozen_trunk_gets_no_gradient_and_the_top_does(architecture):
    model = with_random_values(architecture())
    freeze_below(model.policy, 1)
    ids, prompts, responses = padded()
    model(ids, prompts, responses, 9, 1.0).logprobs.sum().backward()
    assert {name for name, p in model.policy.named_parameters() if p.grad is not None} == {
        name for name, p in model.policy.named_parameters() if p.requires_grad
    }
    assert model.policy.get_input_embeddings().weight.grad is None


def test_the_rows_looked_up_are_added_to_a_tied_heads_gradient(architecture):
    model = with_random_values(architecture()).double()
    table = model.policy.get_input_embeddings()
    assert table.weight is model.policy.get_output_embeddings().weight
    ids, prompts, responses = padded()

    def gradient():
        model.zero_grad(set_to_none=True)
        model(ids, prompts, responses, 9, 1.0).logprobs.sum().backward()
        return table.weight.grad.clone()

    looked_up = []

    def watch(_, __, out):
        out.grad_fn.register_hook(lambda gradients, _: looked_up.append(gradients[0]))

    expected = gradient()
    add_embedding_gradient_in_place(model.policy)
    table.register_forward_hook(watch)
    found = gradient()
    assert looked_up[0].is_sparse
    assert not found.is_sparse
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_a_table_of_its_own_keeps_its_dense_gradient(llama):
    policy = llama(tie_word_embeddings=False)
    add_embedding_gradient_in_place(policy)
    assert not policy.get_input_embeddings().sparse


def test_more_trainable_layers_than_there_are_is_an_error(architecture):
    with pytest.raises(ConfigError, match="trainable_layers=4 exceeds the model's 3 layers"):
        freeze_below(architecture(), 4)


def test_the_stack_of_layers_is_found_and_its_absence_is_an_error(architecture, llama):
    assert len(decoder_layers(architecture())) == 3
    policy = llama()
    policy.model.layers = nn.Sequential()
    with pytest.raises(ConfigError, match="has no stack of 3 layers"):
        decoder_layers(policy)


def test_a_fresh_policy_has_the_shape_of_its_configuration_and_the_tokenizers_ids():
    tokenizer = train_word_tokenizer(["a good film", "a bad film"], vocabulary_size=16, max_tokens=32)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    shape = FreshModel(num_layers=3, hidden_size=16, num_heads=2, max_tokens=32, tie_embeddings=False)
    policy = fresh_policy(shape, tokenizer)
    assert policy.get_output_embeddings().weight.shape == (len(tokenizer), 16)
    assert len(decoder_layers(policy)) == 3
    assert policy.config.max_position_embeddings == 32
    assert (policy.config.pad_token_id, policy.config.eos_token_id) == (0, 2)
    assert policy.get_output_embeddings().weight is not policy.get_input_embeddings().weight
    tied = fresh_policy(shape.model_copy(update={"tie_embeddings": True}), tokenizer)
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight


def test_auto_is_float32_but_for_serving_on_a_gpu_that_computes_in_bfloat16(monkeypatch):
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert resolve_dtype("auto", cpu, serves=True) == torch.float32
    assert resolve_dtype("float16", cpu, serves=True) == torch.float16
    for capable, served in ((True, torch.bfloat16), (False, torch.float32)):
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda capable=capable: capable)
        assert resolve_dtype("auto", gpu, serves=True) == served
        assert resolve_dtype("auto", gpu, serves=False) == torch.float32


def test_a_device_that_is_not_there_is_an_error_and_auto_takes_what_is_there():
    assert resolve_device("auto", 0).type == "cpu"
    assert resolve_device("cpu", 1).type == "cpu"
    if not torch.cuda.is_available():
        assert resolve_device("auto", 1).type == "cpu"
        with pytest.raises(ConfigError, match='device = "cuda", but torch sees no GPU'):
            resolve_device("cuda", 1)


def test_values_of_their_own_trunk_begin_as_those_of_the_policys(architecture):
    policy = architecture()
    shared, own = with_random_values(policy), with_random_values(policy, twin_trunk(policy))
    expected, found = run(shared, *padded()), run(own, *padded())
    for name in ("logprobs", "entropy", "values", "last_values"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    with torch.no_grad():
        for parameter in own.value_trunk.parameters():
            parameter.mul_(1.5)
    moved = run(own, *padded())
    assert torch.equal(moved.logprobs, expected.logprobs)
    assert not torch.equal(moved.values, expected.values)


def test_values_of_their_own_and_logprobs_share_no_gradient(architecture):
    policy = architecture()
    model = with_random_values(policy, twin_trunk(policy))
    ids, prompts, responses = padded()
    out = model(ids, prompts, responses, int(responses.max()), 1.0)
    of_values = {id(p) for p in model.value_parameters()}
    (out.values.sum() + out.last_values.sum()).backward(retain_graph=True)
    assert {id(p) for p in model.parameters() if p.grad is not None} == of_values
    model.zero_grad(set_to_none=True)
    (out.logprobs.sum() + out.entropy.sum()).backward()
    assert {id(p) for p in model.parameters() if p.grad is not None} == {id(p) for p in model.policy.parameters()}
