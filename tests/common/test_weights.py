"""One flat buffer: all of a model, tied tensors once, and nothing shared with the model."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from common.errors import WeightsMismatchError
from common.flat_parameters import FlatParameters, can_lie_on, lay_on
from common.weights import buffer_hash, distinct_parameters, flatten, rest_hash


def load_flat(model, buffer, manifest):
    FlatParameters(distinct_parameters(model)).load(buffer, manifest)


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


def test_an_unknown_tensor_and_a_wrong_shape_are_named(llama):
    buffer, manifest = flatten(llama())
    extra = replace(manifest[0], name="model.layers.9.mlp.weight")
    with pytest.raises(WeightsMismatchError, match=r"'model\.layers\.9\.mlp\.weight'.*no such tensor"):
        load_flat(llama(), buffer, (*manifest, extra))
    bent = (replace(manifest[0], shape=manifest[0].shape[::-1]), *manifest[1:])
    with pytest.raises(WeightsMismatchError, match=r"embed_tokens.weight' has shape \(32, 97\).*\(97, 32\)"):
        load_flat(llama(), buffer, bent)


def test_parameters_stay_what_they_are_when_they_are_laid_out(architecture):
    model = architecture().eval()
    ids = torch.arange(20).reshape(2, 10)
    with torch.no_grad():
        before = model(input_ids=ids).logits
        objects = [id(p) for p in model.parameters()]
        flat = FlatParameters(distinct_parameters(model))
        assert torch.equal(model(input_ids=ids).logits, before)
    assert [id(p) for p in model.parameters()] == objects
    assert all(p.data_ptr() % 64 == 0 for p in model.parameters()), "kernels may compute otherwise where it is not"
    assert model.get_output_embeddings().weight.data_ptr() == model.get_input_embeddings().weight.data_ptr()
    model(input_ids=ids).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert len(flat.stretches) == 1


def test_what_is_lent_is_the_parameters_own_memory_and_as_the_manifest_says():
    odd = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 7))
    flat = FlatParameters(odd.named_parameters())
    buffer = flat.buffer()
    with torch.no_grad():
        odd[1].bias.fill_(4.25)
    for spec in flat.manifest:
        values = buffer[spec.offset : spec.offset + int(np.prod(spec.shape))].reshape(spec.shape)
        np.testing.assert_array_equal(values, odd.get_parameter(spec.name).detach().numpy())
    assert np.shares_memory(buffer, flat.buffer(buffer))


@pytest.mark.parametrize("source_flat", [True, False])
@pytest.mark.parametrize("target_dtypes", ["plain", "half", "mixed"])
def test_a_part_of_the_parameters_is_loaded_wherever_it_lies(source_flat, target_dtypes):
    source, target = (nn.Sequential(*(nn.Linear(n, n + 1) for n in (2, 3, 4, 5))) for _ in range(2))
    if target_dtypes != "plain":
        (target if target_dtypes == "half" else target[2]).bfloat16()
    before = {name: p.detach().clone() for name, p in target.named_parameters()}
    named = [(name, p) for name, p in source.named_parameters() if name.split(".")[0] in "13"]
    if source_flat:
        flat = FlatParameters(named)
        buffer, manifest = flat.buffer(), flat.manifest
    else:
        buffer, manifest = flatten(source)
        manifest = tuple(spec for spec in manifest if spec.name in dict(named))
    load_flat(target, buffer, manifest[::-1])
    for name, parameter in target.named_parameters():
        expected = dict(named)[name].detach().to(parameter.dtype) if name in dict(named) else before[name]
        assert torch.equal(parameter, expected), name


def test_a_buffer_of_parameters_in_less_than_float32_is_gathered_into_the_same_memory_each_time():
    model = nn.Sequential(nn.Linear(3, 5), nn.Linear(5, 7).bfloat16())
    flat = FlatParameters(model.named_parameters())
    first = flat.buffer()
    with torch.no_grad():
        model[1].weight.fill_(0.5)
    again = flat.buffer(first)
    assert again is first
    spec = next(spec for spec in flat.manifest if spec.name == "1.weight")
    assert spec.dtype == "bfloat16"
    assert set(again[spec.offset : spec.offset + 35]) == {0.5}


def test_large_tensors_are_cast_in_pieces_without_a_seam(monkeypatch):
    monkeypatch.setattr("common.flat_parameters.PIECE", 7)
    source, target = nn.Linear(6, 5), nn.Linear(6, 5).bfloat16()
    load_flat(target, *flatten(source))
    assert torch.equal(target.weight, source.weight.bfloat16())
    assert torch.equal(target.bias, source.bias.bfloat16())


def published(model):
    """Buffer and manifest as they come out of the object store: nobody can write."""
    flat = FlatParameters(distinct_parameters(model))
    buffer = flat.buffer()
    buffer.flags.writeable = False
    return buffer, flat.manifest


def test_a_model_that_lies_on_a_buffer_computes_the_same_and_holds_no_memory_of_its_own(architecture):
    source, target = architecture().eval(), architecture().eval()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.mul_(1.5)
    ids = torch.arange(20).reshape(2, 10)
    buffer, manifest = published(source)
    named = distinct_parameters(target)
    assert can_lie_on(named, buffer, manifest)
    lay_on(named, buffer, manifest)
    assert all(np.shares_memory(p.detach().numpy(), buffer) for p in target.parameters())
    assert target.get_output_embeddings().weight.data_ptr() == target.get_input_embeddings().weight.data_ptr()
    with torch.no_grad():
        assert torch.equal(target(input_ids=ids).logits, source(input_ids=ids).logits)


def test_a_buffer_that_may_change_or_does_not_fit_kernels_is_not_lain_on(llama):
    buffer, manifest = published(llama())
    named = distinct_parameters(llama())
    assert not can_lie_on(named, buffer.copy(), manifest), "somebody may write to it"
    assert not can_lie_on(named, buffer, [replace(spec, offset=spec.offset + 1) for spec in manifest])
    shifted = np.concatenate(([0], buffer)).astype(np.float32)[1:]
    shifted.flags.writeable = False
    assert not can_lie_on(named, shifted, manifest)
    assert not can_lie_on(distinct_parameters(llama().bfloat16()), buffer, manifest)


def test_a_model_that_cannot_lie_on_a_buffer_is_left_as_it_was(llama):
    buffer, manifest = published(llama(seed=1))
    target = llama()
    before = {name: p.detach().clone() for name, p in target.named_parameters()}
    extra = replace(manifest[0], name="model.layers.9.mlp.weight")
    with pytest.raises(WeightsMismatchError, match=r"'model\.layers\.9\.mlp\.weight'.*no such tensor"):
        lay_on(distinct_parameters(target), buffer, (*manifest, extra))
    assert all(torch.equal(p, before[name]) for name, p in target.named_parameters())


def test_the_hash_of_the_rest_tells_values_names_and_precision(llama):
    model, twin = llama(), llama()
    sent = {name for name, _ in model.named_parameters() if "layers.1" in name}
    assert rest_hash(model, sent) == rest_hash(twin, sent)
    with torch.no_grad():
        twin.get_parameter(min(sent)).add_(1)
    assert rest_hash(model, sent) == rest_hash(twin, sent), "what travels is no part of it"
    with torch.no_grad():
        twin.model.norm.weight[0] += 1e-6
    assert rest_hash(model, sent) != rest_hash(twin, sent)
    assert rest_hash(model, sent) != rest_hash(model, sent - {min(sent)})
    assert rest_hash(model, sent, torch.bfloat16) == rest_hash(llama().bfloat16(), sent)


def test_a_model_that_is_laid_out_is_saved_and_read_as_any_other(llama, tmp_path):
    model = llama()
    FlatParameters(distinct_parameters(model))
    model.save_pretrained(tmp_path / "flat")
    llama().save_pretrained(tmp_path / "plain")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("flat", "plain")]
    assert files[0] == files[1]
