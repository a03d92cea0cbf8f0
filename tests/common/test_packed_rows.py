"""Rows packed into one against rows padded: the same outputs and gradients, and no work on padding."""

import pytest
import torch
from torch import nn
from transformers import Llama4ForCausalLM, Llama4TextConfig, LlamaConfig, Qwen2Config

from common.modeling import PolicyWithValueHead, twin_trunk
from common.packed_rows import Layout, PackedRows, refusal

BATCH = (torch.arange(3, 48).view(3, 15), torch.tensor([2, 4, 1]), torch.tensor([13, 3, 5]), 13, 0.7)


def run(model):
    out = model(*BATCH)
    loss = out.logprobs.sum() + out.entropy.sum() + out.values.square().sum() + out.last_values.sum()
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return out, found


@pytest.mark.parametrize("has_own_values", [False, True], ids=["shared", "own"])
def test_packed_rows_have_the_outputs_and_gradients_of_padded_ones(architecture, has_own_values):
    policy = architecture()
    model = PolicyWithValueHead(policy, value_trunk=twin_trunk(policy) if has_own_values else None).double()
    nn.init.normal_(model.value_head.weight)
    expected, gradients = run(model)
    model.pack()
    widths = []
    trunks = [model.policy, model.value_trunk][: 1 + has_own_values]
    for trunk in trunks:
        trunk.get_input_embeddings().register_forward_hook(lambda _, args, out: widths.append(tuple(out.shape[:2])))
    found, again = run(model)
    assert widths == [(1, 28)] * len(trunks), "28 tokens are live of 45"
    for name in ("logprobs", "entropy", "values", "last_values"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-12, atol=1e-12)
    for name in gradients:
        torch.testing.assert_close(again[name], gradients[name], rtol=1e-10, atol=1e-12)


def test_the_policy_computes_as_before_when_no_packing_is_open(architecture):
    policy = architecture().eval()
    ids = BATCH[0]
    before = policy(input_ids=ids).logits
    packing = PackedRows.of(policy)
    assert torch.equal(policy(input_ids=ids).logits, before)
    with pytest.raises(KeyError), packing.open():
        raise KeyError
    assert torch.equal(policy(input_ids=ids).logits, before)


def test_an_architecture_that_mixes_tokens_outside_of_attention_is_not_packed(llama):
    policy = llama().eval()
    policy.model.layers[0].register_forward_hook(lambda _, __, out: out + out.roll(1, dims=1))
    assert PackedRows.of(policy) is None
    model = PolicyWithValueHead(policy)
    model.pack()
    assert model.layout(torch.tensor([2, 3]), 3) is None


def test_attention_in_chunks_is_refused_though_short_texts_do_not_show_it():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "intermediate_size_mlp": 48, "num_hidden_layers": 4}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "num_local_experts": 2}
    special = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    config = Llama4TextConfig(vocab_size=97, attention_chunk_size=6, **sizes, **heads, **special)
    policy = Llama4ForCausalLM(config).eval()
    assert PackedRows(policy)._is_like_padding(), "the trial alone would let it pass"
    assert PackedRows.of(policy) is None


def test_a_refusal_names_the_setting_and_sliding_windows_are_none():
    kinds = {"num_hidden_layers": 2, "layer_types": ["full_attention", "linear_attention"]}
    assert "chunks of 6 tokens (attention_chunk_size)" in refusal(LlamaConfig(attention_chunk_size=6))
    assert "linear_attention (layer_types)" in refusal(LlamaConfig(**kinds))
    assert refusal(LlamaConfig()) == ""
    assert refusal(Qwen2Config(use_sliding_window=True, max_window_layers=1)) == ""


def test_rows_of_one_length_have_no_padding_to_save(llama):
    model = PolicyWithValueHead(llama())
    model.pack()
    assert model.layout(torch.tensor([3, 3]), 3) is None
    assert model.layout(torch.tensor([2, 3]), 3) is not None


def test_a_layout_spreads_and_gathers():
    layout = Layout.of(torch.tensor([3, 1, 2]), 3, 6)
    packed = torch.arange(1.0, 13).view(1, 6, 1, 2)
    wide = layout.spread(packed.transpose(1, 2))
    assert wide[:, 0, :, 0].tolist() == [[1, 3, 5], [7, 0, 0], [9, 11, 0]]
    assert torch.equal(layout.gather(wide.transpose(1, 2)), packed)
