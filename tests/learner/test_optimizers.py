"""Which parameter goes to which optimizer, at which rate; and that a packed state goes on as if nothing had been."""

import json

import pytest
import torch

from common.errors import CheckpointError
from common.optimizer_config import AdamW, Muon
from learner.optimizers import build_optimizers, pack_state, set_rate, unpack_state

MUON = Muon(lr=0.02, adamw_lr=1e-3, momentum=0.9, weight_decay=0.01)
ADAMW = AdamW(lr=1e-3, betas=(0.8, 0.9), weight_decay=0.01)


def names_of(model, optimizer):
    names = {id(p): n for n, p in model.named_parameters()}
    return [names[id(p)] for group in optimizer.param_groups for p in group["params"]]


@pytest.mark.parametrize("tied", [True, False])
def test_muon_gets_the_hidden_matrices_and_adamw_all_the_rest(tiny_policy, tied):
    policy = tiny_policy(tied=tied)
    head = torch.nn.Linear(16, 1)
    muon, adamw = build_optimizers(MUON, policy.named_parameters(), head=list(head.parameters()), head_lr=0.5)
    assert isinstance(muon, torch.optim.Muon)
    matrices = names_of(policy, muon)
    projections = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert len(matrices) == 14
    assert all(any(p in name for p in projections) for name in matrices)
    trunk_group, head_group = adamw.param_groups
    rest = [n for n, p in policy.named_parameters() if any(p is q for q in trunk_group["params"])]
    assert set(rest) | set(matrices) == {n for n, _ in policy.named_parameters()}
    assert not set(rest) & set(matrices)
    assert "model.embed_tokens.weight" in rest
    assert ("lm_head.weight" in rest) == (not tied)
    assert (trunk_group["lr"], head_group["lr"], muon.param_groups[0]["lr"]) == (1e-3, 0.5, 0.02)
    assert (muon.param_groups[0]["momentum"], muon.param_groups[0]["weight_decay"]) == (0.9, 0.01)
    assert [id(p) for p in head_group["params"]] == [id(p) for p in head.parameters()]


def test_the_tables_of_gpt2_are_no_hidden_matrices(tiny_policy):
    policy = tiny_policy("gpt2")
    muon, adamw = build_optimizers(MUON, policy.named_parameters())
    assert not any("wte" in n or "wpe" in n or "lm_head" in n for n in names_of(policy, muon))
    assert {"transformer.wte.weight", "transformer.wpe.weight"} <= set(names_of(policy, adamw))
    assert all(p.ndim == 2 for group in muon.param_groups for p in group["params"])


@pytest.mark.parametrize("config", [ADAMW, MUON])
def test_every_parameter_is_optimized_exactly_once_a_tied_head_included(tiny_policy, config):
    policy = tiny_policy(tied=True)
    assert policy.lm_head.weight is policy.model.embed_tokens.weight
    optimizers = build_optimizers(config, policy.named_parameters())
    ids = [id(p) for o in optimizers for group in o.param_groups for p in group["params"]]
    assert sorted(ids) == sorted({id(p) for p in policy.parameters()})


@pytest.mark.parametrize("config", [ADAMW, MUON])
def test_frozen_parameters_are_left_out(tiny_policy, config):
    policy = tiny_policy()
    policy.model.layers[0].requires_grad_(False)
    policy.model.embed_tokens.requires_grad_(False)
    optimizers = build_optimizers(config, policy.named_parameters())
    names = [n for o in optimizers for n in names_of(policy, o)]
    assert names
    assert sorted(names) == sorted(n for n in names if n.startswith(("model.layers.1.", "model.norm")))


def test_the_head_has_the_rate_of_the_trunk_unless_given_its_own(tiny_policy):
    head = [torch.nn.Parameter(torch.zeros(3))]
    for head_lr, expected in ((None, 1e-3), (0.7, 0.7)):
        (optimizer,) = build_optimizers(ADAMW, tiny_policy().named_parameters(), head=head, head_lr=head_lr)
        assert [group["lr"] for group in optimizer.param_groups] == [1e-3, expected]
        assert optimizer.param_groups[0]["betas"] == (0.8, 0.9)


def test_a_rate_is_always_a_share_of_the_peak(tiny_policy):
    optimizers = build_optimizers(MUON, tiny_policy().named_parameters(), head=[torch.nn.Parameter(torch.zeros(1))])
    for scale in (0.5, 0.1, 1.0):
        set_rate(optimizers, scale)
        rates = [group["lr"] for o in optimizers for group in o.param_groups]
        assert rates == pytest.approx([0.02 * scale, 1e-3 * scale, 1e-3 * scale])


def take_step(policy, optimizers, seed):
    ids = torch.randint(3, 23, (4, 9), generator=torch.Generator().manual_seed(seed))
    policy(input_ids=ids, labels=ids).loss.backward()
    for optimizer in optimizers:
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("config", [ADAMW, MUON])
def test_a_packed_state_goes_on_bit_for_bit(tiny_policy, config):
    policy, twin = tiny_policy(), tiny_policy()
    optimizers = build_optimizers(config, policy.named_parameters())
    for seed in range(3):
        set_rate(optimizers, 1 - seed / 10)
        take_step(policy, optimizers, seed)
    twin.load_state_dict(policy.state_dict())
    others = build_optimizers(config, twin.named_parameters())
    for mine, other in zip(optimizers, others, strict=True):
        tensors, groups = pack_state(mine)
        copies = {name: t.clone() for name, t in tensors.items()}
        unpack_state(other, copies, json.loads(json.dumps(groups)))
    for seed in range(3, 6):
        for which in ((policy, optimizers), (twin, others)):
            set_rate(which[1], 1 - seed / 10)
            take_step(*which, seed)
    for (name, p), q in zip(policy.named_parameters(), twin.parameters(), strict=True):
        assert torch.equal(p, q), name


def test_without_the_state_training_would_go_elsewhere(tiny_policy):
    """The control of the test above."""
    policy, twin = tiny_policy(), tiny_policy()
    optimizers = build_optimizers(ADAMW, policy.named_parameters())
    for seed in range(3):
        take_step(policy, optimizers, seed)
    twin.load_state_dict(policy.state_dict())
    take_step(policy, optimizers, 3)
    take_step(twin, build_optimizers(ADAMW, twin.named_parameters()), 3)
    assert not torch.equal(policy.model.norm.weight, twin.model.norm.weight)


def test_a_state_of_another_model_is_refused(tiny_policy):
    policy, larger = tiny_policy(), tiny_policy(num_layers=3)
    optimizers = build_optimizers(ADAMW, policy.named_parameters())
    take_step(policy, optimizers, 0)
    tensors, groups = pack_state(optimizers[0])
    (other,) = build_optimizers(ADAMW, larger.named_parameters())
    with pytest.raises(CheckpointError, match="optimizer state does not fit the model"):
        unpack_state(other, tensors, groups)
