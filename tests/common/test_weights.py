"""One flat buffer: all of a model, tied tensors once, and nothing shared with the model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from common.errors import WeightsMismatchError
from common.weights import buffer_hash, distinct_parameters, flatten, load_flat


@pytest.mark.parametrize("tied", [True, False])
def test_a_model_that_loads_anothers_buffer_computes_the_same(architecture, tied):
    # Trap 21.
    source = architecture(seed=0, tie_word_embeddings=tied).eval()
    target = architecture(seed=1, tie_word_embeddings=tied).eval()
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        expected = source(input_ids=ids).logits
        assert not torch.equal(target(input_ids=ids).logits, expected)
        load_flat(target, *flatten(source))
        assert torch.equal(target(input_ids=ids).logits, expected)


@pytest.mark.parametrize("tied", [True, False])
def test_tied_weights_are_in_the_buffer_once(llama, tied):
    buffer, manifest = flatten(llama(tie_word_embeddings=tied))
    names = [spec.name for spec in manifest]
    assert "model.embed_tokens.weight" in names
    assert ("lm_head.weight" in names) != tied
    assert len(buffer) == sum(int(np.prod(spec.shape)) for spec in manifest)


def test_tied_weights_stay_tied_after_loading(architecture):
    target = architecture(seed=1)
    load_flat(target, *flatten(architecture(seed=0)))
    head, embedding = target.get_output_embeddings().weight, target.get_input_embeddings().weight
    assert head.data_ptr() == embedding.data_ptr()
    assert torch.equal(head, architecture(seed=0).get_input_embeddings().weight)


def test_the_manifest_covers_the_buffer_without_gaps_or_overlaps(architecture):
    model = architecture()
    buffer, manifest = flatten(model)
    end = 0
    for spec, (name, parameter) in zip(manifest, distinct_parameters(model), strict=True):
        assert (spec.name, spec.offset, spec.shape, spec.dtype) == (name, end, tuple(parameter.shape), "float32")
        values = buffer[spec.offset : spec.offset + parameter.numel()].reshape(spec.shape)
        np.testing.assert_array_equal(values, parameter.detach().numpy())
        end += parameter.numel()
    assert end == len(buffer)


def test_the_buffer_is_a_copy_of_the_model_and_the_model_of_the_buffer(llama):
    # Trap 22.
    source, target = llama(seed=0), llama(seed=1)
    buffer, manifest = flatten(source)
    published = buffer_hash(buffer)
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.zero_()
    assert buffer_hash(buffer) == published
    load_flat(target, buffer, manifest)
    buffer[:] = 0
    assert buffer_hash(flatten(target)[0]) == published


def test_a_read_only_buffer_loads_and_is_not_written(llama):
    # Trap 29; UserWarnings of `common` are errors in all tests.
    buffer, manifest = flatten(llama(seed=0))
    buffer.setflags(write=False)
    target = llama(seed=1)
    load_flat(target, buffer, manifest)
    with torch.no_grad():
        target.model.norm.weight.add_(1)
    np.testing.assert_array_equal(buffer, flatten(llama(seed=0))[0])


def test_loading_takes_part_in_no_graph_and_keeps_requires_grad(llama):
    target = llama(seed=1)
    target.model.norm.weight.requires_grad_(False)
    load_flat(target, *flatten(llama(seed=0)))
    assert [p.requires_grad for n, p in target.named_parameters() if n != "model.norm.weight"].count(False) == 0
    assert not target.model.norm.weight.requires_grad
    assert all(p.grad_fn is None for p in target.parameters())


def test_parameters_of_any_memory_layout_and_precision_are_loaded():
    source = nn.Linear(3, 2)
    target = nn.Linear(3, 2)
    target.weight = nn.Parameter(torch.zeros(3, 2).t())
    assert not target.weight.is_contiguous()
    load_flat(target, *flatten(source))
    assert torch.equal(target.weight, source.weight)
    half = nn.Linear(3, 2).bfloat16()
    load_flat(half, *flatten(source))
    assert torch.equal(half.weight, source.weight.bfloat16())
    buffer, manifest = flatten(half)
    assert buffer.dtype == np.float32
    assert {spec.dtype for spec in manifest} == {"bfloat16"}
    np.testing.assert_array_equal(buffer[:6].reshape(2, 3), source.weight.detach().bfloat16().float().numpy())


def test_scalar_parameters_survive():
    class Scalar(nn.Module):
        def __init__(self, value):
            super().__init__()
            self.bias = nn.Parameter(torch.tensor(value))

    target = Scalar(0.0)
    load_flat(target, *flatten(Scalar(2.5)))
    assert target.bias.item() == 2.5
    assert target.bias.shape == ()


def test_the_hash_tells_one_bit_of_one_weight_and_the_place_of_each(llama):
    buffer, _ = flatten(llama())
    published = buffer_hash(buffer)
    assert buffer_hash(buffer.copy()) == published
    changed = buffer.copy()
    changed.view(np.uint32)[len(buffer) // 2] ^= 1
    assert buffer_hash(changed) != published
    swapped = buffer.copy()
    swapped[[0, 1]] = swapped[[1, 0]]
    assert buffer_hash(swapped) != published
    assert published < 1 << 64


@pytest.mark.parametrize("lost", [0, 3, -1])
def test_a_missing_tensor_is_named_before_anything_is_written(llama, lost):
    buffer, manifest = flatten(llama(seed=0))
    target = llama(seed=1)
    before = buffer_hash(flatten(target)[0])
    name = manifest[lost].name
    with pytest.raises(WeightsMismatchError, match=f"lack '{name}' "):
        load_flat(target, buffer, tuple(s for s in manifest if s.name != name))
    assert buffer_hash(flatten(target)[0]) == before


def test_an_unknown_tensor_and_a_wrong_shape_are_named(llama):
    buffer, manifest = flatten(llama())
    extra = replace(manifest[0], name="model.layers.9.mlp.weight")
    with pytest.raises(WeightsMismatchError, match=r"'model\.layers\.9\.mlp\.weight'.*no such tensor"):
        load_flat(llama(), buffer, (*manifest, extra))
    bent = (replace(manifest[0], shape=manifest[0].shape[::-1]), *manifest[1:])
    with pytest.raises(WeightsMismatchError, match=r"embed_tokens.weight' has shape \(32, 97\).*\(97, 32\)"):
        load_flat(llama(), buffer, bent)
