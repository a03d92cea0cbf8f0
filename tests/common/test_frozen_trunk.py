"""The frozen layers' states in the place of the layers: the same outputs and gradients, and no layer computed."""

import pytest
import torch
from torch import nn
from transformers import BloomConfig, BloomForCausalLM, GPTNeoXConfig, GPTNeoXForCausalLM

from common.frozen_trunk import FrozenTrunk
from common.modeling import PolicyWithValueHead, decoder_layers, freeze_below

BATCH = (torch.arange(3, 33).view(3, 10), torch.tensor([2, 4, 1]), torch.tensor([8, 3, 5]), 8, 0.7)


def gradients_of(model):
    out = model(*BATCH)
    (out.logprobs.sum() + out.entropy.sum() + out.values.square().sum()).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return out, found


def test_kept_states_stand_for_the_trunk_in_outputs_and_gradients(architecture):
    model = PolicyWithValueHead(architecture().double())
    model.double()
    nn.init.normal_(model.value_head.weight)
    freeze_below(model.policy, 1)
    trunk = FrozenTrunk.of(model.policy, 1)
    names = [name for name, _ in model.named_parameters()]
    with trunk.watched() as seen:
        expected, gradients = gradients_of(model)
    ran = []
    handles = [layer.register_forward_hook(lambda *_: ran.append(1)) for layer in decoder_layers(model.policy)]
    with trunk.replaced(seen[0].detach()):
        found, again = gradients_of(model)
    assert len(ran) == 1, "only the trained layer is computed"
    for name in ("logprobs", "entropy", "values", "last_values"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), rtol=1e-12, atol=1e-12)
    assert again.keys() == gradients.keys()
    for name in again:
        torch.testing.assert_close(again[name], gradients[name], rtol=1e-12, atol=1e-12)
    for handle in handles:
        handle.remove()
    assert [name for name, _ in model.named_parameters()] == names, "all layers are back in their places"


def assert_frozen_layers_are_computed_once(policy, frozen):
    freeze_below(policy, 1)
    trunk = FrozenTrunk.of(policy, 1)
    assert trunk is not None
    ids = torch.arange(3, 33).view(3, 10)
    with trunk.watched() as seen:
        expected = policy(input_ids=ids, use_cache=False).logits
    ran = []
    for layer in decoder_layers(policy):
        layer.register_forward_hook(lambda *_: ran.append(1))
    with trunk.replaced(seen[0].detach()):
        found = policy(input_ids=ids, use_cache=False).logits
    assert len(ran) == 1
    assert torch.equal(found, expected)
    assert len(decoder_layers(policy)) == frozen + 1


@pytest.mark.parametrize("frozen", [1, 3, 4, 6])
def test_layers_that_return_tuples_are_skipped_however_many_there_are(frozen):
    torch.manual_seed(0)
    bloom = BloomForCausalLM(BloomConfig(vocab_size=97, hidden_size=32, n_layer=frozen + 1, n_head=4)).eval()
    returned = []
    with bloom.transformer.h[0].register_forward_hook(lambda _, __, out: returned.append(type(out))):
        bloom(input_ids=torch.arange(4)[None])
    assert returned == [tuple], "what this test is about"
    assert_frozen_layers_are_computed_once(bloom, frozen)


def test_many_layers_that_return_the_states_alone_are_skipped():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 6, "num_attention_heads": 4}
    assert_frozen_layers_are_computed_once(GPTNeoXForCausalLM(GPTNeoXConfig(vocab_size=97, **sizes)).eval(), 5)


def test_the_layers_come_back_after_an_error(architecture):
    policy = architecture()
    before = list(decoder_layers(policy))
    with pytest.raises(KeyError), FrozenTrunk(policy, 1).replaced(torch.zeros(1, 2, 32)):
        raise KeyError
    assert list(decoder_layers(policy)) == before
    assert not decoder_layers(policy)[2]._forward_pre_hooks


def test_there_is_no_trunk_below_a_model_that_is_trained_whole_or_that_reads_its_layers_otherwise(architecture, llama):
    assert FrozenTrunk.of(architecture(), 3) is None
    policy = llama()
    top = policy.model.layers[2].forward
    kept = []
    policy.model.layers[0].register_forward_hook(lambda _, __, out: kept.append(out))
    policy.model.layers[2].forward = lambda states, **kw: top(states + kept[-1], **kw)  # a connection past the cut
    trunk = FrozenTrunk.of(policy, 1)
    kept.append(torch.zeros(()))
    assert trunk is None or not trunk._is_skipped_rightly(policy)
