"""The learner as others see it: what it records, what a checkpoint brings back, and what an export holds."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from common.errors import CheckpointError
from common.records import Identity, JudgementChunk, ModelPaths, ReferenceChunk, RolloutChunk
from common.seeds import sample_seed
from common.text import load_tokenizer, train_word_tokenizer
from common.weights import weights_of as published_weights_of
from learner.service import LearnerService, build_learner
from learner.trajectory_file import read_trajectories, trajectory_path, write_trajectories

ADAPTIVE = {"reference": "service", "kl": {"type": "adaptive", "coef": 0.2, "target": 0.01, "horizon": 100}}
MUON = {"type": "muon", "lr": 1e-2, "adamw_lr": 1e-3}
WORDS = " ".join(f"{a}{b}" for a in "abcde" for b in "vwxy")


@pytest.fixture
def tokenizer():
    return train_word_tokenizer([WORDS], vocabulary_size=23, max_tokens=64)


@pytest.fixture
def service(make_learner, tokenizer, tmp_path):
    def build(policy, name="run", **settings):
        return LearnerService(make_learner(policy, **settings), tokenizer, tmp_path / name)

    return build


def payloads(trajectories, sizes=(6, 10)):
    """Cut into chunks as they come from the pools."""
    chunks, start = [], 0
    for size in sizes:
        part = trajectories[start : start + size]
        start += size
        refs = None if part[0].ref_logprobs is None else ReferenceChunk(tuple(t.ref_logprobs for t in part))
        chunks.append(
            (
                RolloutChunk(tuple(t.prompt for t in part), tuple(t.rollout for t in part)),
                JudgementChunk(tuple(t.judgement for t in part)),
                refs,
            )
        )
    return chunks


def stepped(service, policy, sample, steps, *, first=0):
    """Updates on samples of the service's own weights."""
    for step in range(first, first + steps):
        now = service.learner.plain.policy
        service.update(payloads(sample(now, step=step, first_draw=16 * step, reference=policy)))


# --- checkpoints


@pytest.mark.parametrize("optimizer", [{"type": "adamw", "lr": 1e-2}, MUON])
def test_training_goes_on_from_a_checkpoint_bit_for_bit(
    tiny_policy, sample, service, weights_of, changed, tmp_path, optimizer
):
    """Weights, value head, moments, rates, step, KL controller: a fresh learner with all of them is the same one."""
    policy = tiny_policy()
    settings = ADAPTIVE | {"optimizer": optimizer, "lr_warmup_updates": 5, "value_head_lr": 0.02}
    first, second = service(policy, "a", **settings), service(policy, "b", **settings)
    stepped(first, policy, sample, 3)
    first.learner.lineage = 2
    first.save(tmp_path / "checkpoint")
    second.load(tmp_path / "checkpoint")
    assert second.learner.identity == Identity(2, 3)
    assert second.step == 3
    assert second.weights().hash == first.weights().hash
    assert second.learner.controller.coef == first.learner.controller.coef != 0.2
    trajectories = sample(first.learner.plain.policy, step=3, lineage=2, first_draw=48, reference=policy)
    reports = [each.update(payloads(trajectories)) for each in (first, second)]
    assert changed(weights_of(first.learner), weights_of(second.learner)) == []
    assert reports[0].metrics == reports[1].metrics
    assert reports[1].identity == Identity(2, 4)


def test_a_fresh_learner_without_the_checkpoint_would_go_elsewhere(tiny_policy, sample, service, weights_of, changed):
    """The control of the test above: optimizer state matters to the next update."""
    policy = tiny_policy()
    first, second = service(policy, "a", **ADAPTIVE), service(policy, "b", **ADAPTIVE)
    stepped(first, policy, sample, 1)
    with torch.no_grad():
        for name, parameter in second.learner.plain.named_parameters():
            parameter.copy_(weights_of(first.learner)[name])
    second.learner.step = 1
    trajectories = sample(first.learner.plain.policy, step=1, first_draw=16, reference=policy)
    for each in (first, second):
        each.update(payloads(trajectories))
    assert changed(weights_of(first.learner), weights_of(second.learner))


def test_a_checkpoint_of_the_very_start_can_be_loaded(tiny_policy, sample, service, weights_of, changed, tmp_path):
    policy = tiny_policy()
    first, second = service(policy, "a"), service(tiny_policy(seed=1), "b")
    first.save(tmp_path / "checkpoint")
    second.load(tmp_path / "checkpoint")
    trajectories = sample(policy)
    for each in (first, second):
        each.update(payloads(trajectories))
    assert changed(weights_of(first.learner), weights_of(second.learner)) == []


def test_frozen_and_trained_layers_both_come_back(tiny_policy, sample, service, weights_of, changed, tmp_path):
    policy = tiny_policy()
    first = service(policy, "a", trainable_layers=1)
    stepped(first, policy, sample, 1)
    first.save(tmp_path / "checkpoint")
    second = service(tiny_policy(seed=1), "b", trainable_layers=1)
    second.load(tmp_path / "checkpoint")
    assert changed(weights_of(first.learner), weights_of(second.learner)) == []


@pytest.mark.parametrize("name", ["learner.safetensors", "state.json", "manifest.json"])
@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_a_damaged_checkpoint_is_named_and_leaves_the_learner_alone(
    tiny_policy, service, weights_of, changed, tmp_path, name, damage
):
    service(tiny_policy(), "a").save(tmp_path / "checkpoint")
    path = tmp_path / "checkpoint" / name
    content = bytearray(path.read_bytes())
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        os.truncate(path, len(content) // 2)
    else:
        content[len(content) // 3] ^= 0x40
        path.write_bytes(content)
    other = service(tiny_policy(seed=1), "b")
    before = weights_of(other.learner)
    with pytest.raises(CheckpointError, match=name):
        other.load(tmp_path / "checkpoint")
    assert changed(before, weights_of(other.learner)) == []


@pytest.mark.parametrize(
    ("other", "settings"),
    [
        ({"num_layers": 3}, {}),  # tensors are missing
        ({"num_layers": 1}, {}),  # tensors are too many
        ({"kind": "gpt2"}, {}),  # other names
        ({"tied": False}, {}),  # a head of its own
        ({}, {"optimizer": MUON}),  # another optimizer
        ({}, {"trainable_layers": 1}),  # another set of trained layers
    ],
)
def test_a_checkpoint_of_another_model_is_refused_and_leaves_the_learner_alone(
    tiny_policy, sample, service, weights_of, changed, tmp_path, other, settings
):
    policy = tiny_policy()
    first = service(policy, "a")
    stepped(first, policy, sample, 1)
    first.save(tmp_path / "checkpoint")
    second = service(tiny_policy(seed=1, **other), "b", **settings)
    before = weights_of(second.learner)
    with pytest.raises(CheckpointError):
        second.load(tmp_path / "checkpoint")
    assert changed(before, weights_of(second.learner)) == []
    assert second.step == 0


# --- what an update leaves behind


def test_an_update_records_what_it_trained_on(tiny_policy, sample, service):
    policy = tiny_policy()
    trajectories = sample(policy, reference=tiny_policy(seed=1))
    assert {t.rollout.finish for t in trajectories} == {"stop", "length"}
    learner = service(policy, **ADAPTIVE)
    chunks = payloads(trajectories)
    report = learner.update(chunks[::-1])  # whoever came first
    columns = read_trajectories(trajectory_path(learner.folder / "trajectories", report.step))
    assert columns["draw_index"].tolist() == list(range(16))
    assert columns["sample_index"].tolist() == [0] * 16
    assert columns["seed"].tolist() == [sample_seed(0, d, 0) for d in range(16)]
    assert columns["lineage"].tolist() == columns["step"].tolist() == [0] * 16
    assert columns["score"].tolist() == [t.judgement.score for t in trajectories]
    assert columns["score_part.even"].tolist() == [1.0] * 16
    assert columns["prompt_id"].tolist() == [t.prompt.prompt_id for t in trajectories]
    assert columns["truncated"].tolist() == [t.rollout.finish == "length" for t in trajectories]
    for i, t in enumerate(trajectories):
        for name, expected in (
            ("prompt_ids", t.prompt.token_ids),
            ("response_ids", t.rollout.response_ids),
            ("logprobs", t.rollout.logprobs),
            ("ref_logprobs", t.ref_logprobs),
        ):
            assert columns[name][i].dtype == expected.dtype
            assert np.array_equal(columns[name][i], expected), name
    assert [p.name for p in (learner.folder / "trajectories").iterdir()] == ["update_000001.safetensors"]


def test_the_same_samples_give_the_same_bytes_whoever_made_them_and_whenever(tiny_policy, sample, service):
    policy = tiny_policy()
    trajectories = sample(policy, reference=policy)
    retried = [replace(t, rollout=replace(t.rollout, attempt=3)) for t in trajectories]
    files = []
    for name, chunks in (("a", payloads(trajectories)), ("b", payloads(retried, (16,)))):
        learner = service(policy, name, **ADAPTIVE)
        learner.update(chunks[::-1])
        files.append(trajectory_path(learner.folder / "trajectories", 1).read_bytes())
    assert files[0] == files[1]


def test_a_trajectory_file_of_one_sample_and_without_reference_is_read_back(tiny_policy, sample, tmp_path):
    (one,) = sample(tiny_policy(), 1)
    write_trajectories(tmp_path / "t" / "update_000001.safetensors", [one])
    columns = read_trajectories(tmp_path / "t" / "update_000001.safetensors")
    assert "ref_logprobs" not in columns
    assert [ids.tolist() for ids in columns["response_ids"]] == [one.rollout.response_ids.tolist()]


def test_an_update_that_fails_records_nothing(tiny_policy, sample, service):
    policy = tiny_policy()
    learner = service(policy)
    with pytest.raises(ValueError, match="came twice"):
        learner.update(payloads(sample(policy)) * 2)
    assert not (learner.folder / "trajectories").exists()


# --- export and building


def test_an_export_is_a_model_that_transformers_loads(tiny_policy, sample, service, tmp_path):
    policy = tiny_policy()
    learner = service(policy)
    stepped(learner, policy, sample, 1)
    learner.export(tmp_path / "export")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "export").eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        expected = learner.learner.plain.policy(input_ids=ids).logits
        assert torch.equal(loaded(input_ids=ids).logits, expected)
        assert not torch.equal(policy.eval()(input_ids=ids).logits, expected)
    assert load_tokenizer(str(tmp_path / "export"))("av bw")["input_ids"] == learner.tokenizer("av bw")["input_ids"]
    assert weights_of_export(tmp_path / "export").hash == learner.weights().hash


def weights_of_export(folder):
    return published_weights_of(str(folder), Identity(-1, 1))


def test_a_learner_is_built_from_a_folder_with_a_probe_that_its_own_weights_pass(
    tiny, tiny_policy, tokenizer, tmp_path
):
    policy = tiny_policy()
    policy.save_pretrained(tmp_path / "policy")
    tokenizer.save_pretrained(tmp_path / "policy")
    paths = ModelPaths(policy=str(tmp_path / "policy"), reward_model="unused")
    learners = [build_learner(tiny(), paths, tmp_path) for _ in range(2)]
    handle, again = (each.weights() for each in learners)
    assert handle.hash == again.hash == weights_of_export(tmp_path / "policy").hash
    ids = torch.from_numpy(handle.probe.token_ids).long()
    with torch.no_grad():
        table = policy.eval()(input_ids=ids).logits.log_softmax(-1)
    by_hand = table[:, :-1].gather(-1, ids[:, 1:, None]).squeeze(-1)
    np.testing.assert_allclose(handle.probe.logprobs, by_hand, atol=1e-5)


def test_the_state_of_a_checkpoint_is_json_that_anyone_can_read(tiny_policy, sample, service, tmp_path):
    policy = tiny_policy()
    learner = service(policy, **ADAPTIVE)
    stepped(learner, policy, sample, 1)
    learner.save(tmp_path / "checkpoint")
    state = json.loads((tmp_path / "checkpoint" / "state.json").read_text())
    assert (state["step"], state["lineage"], state["threads"]) == (1, 0, 1)
    assert state["controller"]["coef"] == learner.learner.controller.coef
