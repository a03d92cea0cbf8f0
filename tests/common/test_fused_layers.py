"""Written-out gradients against finite differences, and fused layers against the layers that they were."""

import copy

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from common import products
from common.fused_layers import AfterAttention, BeforeAttention, FusedHead, FusedLlamaLayer, Head, fuse_layers
from common.modeling import PolicyWithValueHead, freeze_below

BATCH = (torch.arange(3, 48).view(3, 15), torch.tensor([2, 4, 1]), torch.tensor([13, 3, 5]), 13, 0.7)
B, T, H, HEADS, KV, D, WIDE = 2, 3, 6, 3, 1, 4, 5
WAYS = ["mkl", *(["onednn"] if torch.backends.mkldnn.is_available() else [])]


def numbers(*shape, seed):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.fixture
def policy():
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=97, hidden_size=24, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=64, tie_word_embeddings=True,
    )  # fmt: skip
    model = LlamaForCausalLM(shape).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.mul_(4.0) if "norm" not in name else parameter.add_(torch.randn(24), alpha=0.3)
    return model


def outputs_and_gradients(model):
    out = model(*BATCH)
    loss = out.logprobs.sum() + out.entropy.sum() + out.values.square().sum() + out.last_values.sum()
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return out, found


def test_the_gradient_before_attention_is_that_of_finite_differences():
    angles = numbers(B, T, D // 2, seed=9).detach().repeat(1, 1, 2)
    weights = [numbers(n * D, H, seed=n) for n in (HEADS, KV, KV)]
    arguments = (numbers(B, T, H, seed=20), numbers(H, seed=21), *weights, angles.cos(), angles.sin(), 1e-2)
    assert torch.autograd.gradcheck(BeforeAttention.apply, arguments)


def test_the_gradient_after_attention_is_that_of_finite_differences():
    arguments = (
        numbers(B, T, HEADS, D, seed=1), numbers(B, T, H, seed=2), numbers(H, HEADS * D, seed=3), numbers(H, seed=4),
        numbers(WIDE, H, seed=5), numbers(WIDE, H, seed=6), numbers(H, WIDE, seed=7), 1e-2,
    )  # fmt: skip
    assert torch.autograd.gradcheck(AfterAttention.apply, arguments)


def test_the_gradient_of_the_head_is_that_of_finite_differences():
    assert torch.autograd.gradcheck(Head.apply, (numbers(B, T, H, seed=1), numbers(WIDE, H, seed=2)))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("is_packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("trained", [3, 1])
def test_fused_layers_have_the_outputs_and_gradients_of_the_layers_that_they_were(
    policy, trained, is_packed, way, monkeypatch
):
    monkeypatch.setattr(products, "has_faster_onednn", lambda: way == "onednn")
    monkeypatch.setattr(products, "ROWS", 1)
    monkeypatch.setattr(products, "LARGE", 0)
    monkeypatch.setattr(products, "LONG", 32)
    model = PolicyWithValueHead(policy)
    nn.init.normal_(model.value_head.weight)
    freeze_below(model.policy, trained) if trained < 3 else None
    expected, gradients = outputs_and_gradients(model)
    assert fuse_layers(model.policy) == ""
    assert all(type(layer) is FusedLlamaLayer for layer in model.policy.model.layers)
    assert type(model.policy.lm_head) is FusedHead
    if is_packed:
        model.pack()
        assert model.layout(BATCH[1] + BATCH[2], 15) is not None
    found, again = outputs_and_gradients(model)
    for name in ("logprobs", "entropy", "values", "last_values"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-4, atol=1e-5)
    assert again.keys() == gradients.keys()
    for name, gradient in gradients.items():
        assert (again[name] - gradient).abs().max() <= 2e-5 * gradient.abs().max(), name


def test_texts_with_a_cache_go_the_way_of_the_layers_that_they_were(policy):
    fused = copy.deepcopy(policy)
    assert fuse_layers(fused) == ""
    prompt = torch.tensor([[3, 5, 7]])
    assert torch.equal(
        fused.generate(prompt, max_new_tokens=9, do_sample=False),
        policy.generate(prompt, max_new_tokens=9, do_sample=False),
    )


def test_fused_layers_are_copied_and_saved_as_any(policy, tmp_path):
    fuse_layers(policy)
    ids = BATCH[0]
    expected = policy(input_ids=ids, use_cache=False).logits
    twin = copy.deepcopy(policy)
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.zero_()
    assert torch.equal(twin(input_ids=ids, use_cache=False).logits, expected)
    twin.save_pretrained(tmp_path)
    again = LlamaForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(input_ids=ids, use_cache=False).logits, expected, rtol=1e-4, atol=1e-5)


def test_what_is_not_computed_here_stays_as_it_was(policy, architecture):
    other = architecture()
    if not isinstance(other, LlamaForCausalLM):
        assert "is not of the Llama family" in fuse_layers(other)
    assert "not in float32 on the CPU" in fuse_layers(copy.deepcopy(policy).bfloat16())
    policy.config.hidden_act = "gelu"
    assert "gelu" in fuse_layers(policy)
    assert not any(isinstance(module, FusedLlamaLayer) for module in policy.modules())


class Adapted(nn.Linear):
    """What an adapter makes of a linear layer."""

    def forward(self, x):
        return super().forward(x) + 1


@pytest.mark.parametrize("head", [Adapted(24, 97, bias=False), nn.Linear(24, 97)], ids=["adapter", "bias"])
def test_a_head_with_more_in_it_than_a_product_is_not_fused(policy, head):
    policy.lm_head, kind = head, type(head)
    assert fuse_layers(policy) == ""
    assert type(policy.lm_head) is kind


@pytest.mark.parametrize("what", ["adapter", "bias", "hook"])
def test_layers_with_more_in_them_than_a_plain_llamas_are_not_fused(policy, what):
    layer = policy.model.layers[1]
    match what:
        case "adapter":
            layer.mlp.up_proj = Adapted(24, 40, bias=False)
        case "bias":
            layer.mlp.up_proj = nn.Linear(24, 40)
        case "hook":
            layer.mlp.up_proj.register_forward_hook(lambda *_: None)
    assert "layers.1.mlp.up_proj is not that of a plain Llama" in fuse_layers(policy)
    assert not any(isinstance(module, FusedLlamaLayer) for module in policy.modules())


def test_each_frozen_matrix_is_left_out_and_no_other(policy):
    fuse_layers(policy)
    matrices = [name for name, p in policy.model.layers[1].named_parameters() if p.ndim == 2]
    for name in matrices:
        frozen = policy.model.layers[1].get_parameter(name)
        frozen.requires_grad_(False)
        policy(input_ids=BATCH[0], use_cache=False).logits.square().sum().backward()
        found = [other for other, p in policy.model.layers[1].named_parameters() if p.grad is None]
        assert found == [name]
        frozen.requires_grad_(True)
        policy.zero_grad(set_to_none=True)


def test_mixed_precision_goes_the_way_of_the_layers_that_they_were(policy):
    fused = copy.deepcopy(policy)
    fuse_layers(fused)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(
            fused(input_ids=BATCH[0], use_cache=False).logits, policy(input_ids=BATCH[0], use_cache=False).logits
        )
