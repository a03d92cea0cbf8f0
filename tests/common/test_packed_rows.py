"""Rows packed into one against rows padded: the same outputs and gradients, and no work on padding."""

import pytest
import torch
from torch import nn

from common.modeling import PolicyWithValueHead
from common.packed_rows import Layout, PackedRows

BATCH = (torch.arange(3, 48).view(3, 15), torch.tensor([2, 4, 1]), torch.tensor([13, 3, 5]), 13, 0.7)


def run(model):
    out = model(*BATCH)
    loss = out.logprobs.sum() + out.entropy.sum() + out.values.square().sum() + out.last_values.sum()
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad(set_to_none=True)
    return out, found


def test_packed_rows_have_the_outputs_and_gradients_of_padded_ones(architecture):
    model = PolicyWithValueHead(architecture()).double()
    nn.init.normal_(model.value_head.weight)
    expected, gradients = run(model)
    model.pack()
    widths = []
    model.policy.get_input_embeddings().register_forward_hook(lambda _, args, out: widths.append(tuple(out.shape[:2])))
    found, again = run(model)
    assert widths == [(1, 28)], "28 tokens are live of 45"
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
