"""The learner as others see it: what it records, what a checkpoint brings back, and what an export holds."""

import json
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from common.checkpoint_store import CheckpointStore
from common.errors import CheckpointError, CorruptWeightsError
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
                RolloutChunk(tuple(t.prompt for t in part), tuple(t.rollout for t in part), 1.0),
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


@pytest.fixture
def store(tmp_path):
    return CheckpointStore(str(tmp_path / "checkpoints"), keep_last=5, keep_best=0)


def save(service, store):
    """A checkpoint, as driver and learner write it between them; returns its URL."""
    service.snapshot()
    shard = service.write_snapshot(store.place(service.step))
    return store.commit(service.step, shard, {}, None).url


# --- checkpoints

KINDS = {
    "service, fixed": {"reference": "service", "kl": {"type": "fixed", "coef": 0.1}},
    "service, adaptive": ADAPTIVE,
    "trunk, fixed": {"reference": "shared_trunk", "kl": {"type": "fixed", "coef": 0.1}, "trainable_layers": 1},
    "trunk, adaptive": ADAPTIVE | {"reference": "shared_trunk", "trainable_layers": 1},
    "trunk of all layers": {"reference": "shared_trunk", "kl": {"type": "fixed", "coef": 0.0}, "kl_loss_coef": 0.1},
    "none": {"reference": "none", "kl": {"type": "fixed", "coef": 0.0}},
    "values of their own": ADAPTIVE | {"value_network": "own"},
    "normalised scores": ADAPTIVE | {"score_normalization": {"type": "running", "subtract_mean": True, "decay": 0.9}},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("optimizer", [{"type": "adamw", "lr": 1e-2}, MUON], ids=["adamw", "muon"])
def test_a_run_that_was_cut_off_equals_one_that_was_not(
    tiny_policy, sample, service, weights_of, changed, store, optimizer, kind
):
    """Five updates are two, a fresh learner with the checkpoint of a lineage of its own, and three: bit for bit."""
    policy = tiny_policy()
    settings = KINDS[kind] | {"optimizer": optimizer, "lr_warmup_updates": 4, "lr_final_fraction": 0.5, "updates": 5}
    settings |= {"value_head_lr": 0.02, "entropy_coef": 0.01}
    reference = policy if KINDS[kind]["reference"] == "service" else None

    def go_on(learner, until):
        reports = []
        while learner.step < until:
            step, lineage = learner.learner.step, learner.learner.lineage
            drawn = sample(
                learner.learner.plain.policy, step=step, lineage=lineage, first_draw=16 * step, reference=reference
            )
            reports.append(learner.update(payloads(drawn)))
        return reports

    whole, first, second = (service(policy, name, **settings) for name in ("whole", "first", "second"))
    expected = go_on(whole, 5)
    go_on(first, 2)
    url = save(first, store)
    go_on(first, 4)  # what is done after the checkpoint must not reach it
    torch.manual_seed(12345)  # torch's own random numbers play no part
    second.load(url, lineage=7)
    assert second.learner.identity == Identity(7, 2)
    found = go_on(second, 5)
    assert [report.metrics for report in found] == [report.metrics for report in expected[2:]]
    assert [report.identity for report in found] == [Identity(7, step) for step in (3, 4, 5)]
    assert changed(weights_of(whole.learner), weights_of(second.learner)) == []
    ends = []
    for each in (whole, second):
        end = Path(save(each, store))  # the second one replaces the first
        ends.append([(end / name).read_bytes() for name in ("learner.safetensors", "learner.json")])
    assert ends[0][0] == ends[1][0], "weights, value head and optimizer state"
    assert json.loads(ends[1][1]) == json.loads(ends[0][1]) | {"lineage": 7}
    for step in (3, 4, 5):
        files = [trajectory_path(each.folder / "trajectories", step).read_bytes() for each in (whole, second)]
        assert files[0] == files[1]


@pytest.mark.parametrize("lost", ["moments", "controller", "rates", "nothing"])
def test_whatever_is_missing_from_a_checkpoint_would_show(
    tiny_policy, sample, service, weights_of, changed, store, lost
):
    """The control of the test above: each part of the state matters to what follows."""
    policy = tiny_policy()
    first, second = service(policy, "a", **ADAPTIVE), service(policy, "b", **ADAPTIVE)
    stepped(first, policy, sample, 2)
    second.load(save(first, store))
    match lost:
        case "moments":
            second.learner.optimizers[0].state.clear()
        case "controller":
            second.learner.controller.coef = 0.2
        case "rates":
            second.learner.optimizers[0].param_groups[0]["peak_lr"] *= 2
    trajectories = sample(first.learner.plain.policy, step=2, first_draw=32, reference=policy)
    for each in (first, second):
        each.update(payloads(trajectories))
    assert bool(changed(weights_of(first.learner), weights_of(second.learner))) == (lost != "nothing")


def test_the_reference_after_a_load_is_the_policy_before_ppo(tiny_policy, sample, service, store):
    """A copy of what was loaded would show a KL of 0."""
    policy = tiny_policy()
    first, second = (service(policy, name, **KINDS["trunk, fixed"], optimizer=MUON) for name in "ab")
    stepped(first, policy, sample, 2)
    second.load(save(first, store))
    report = second.update(payloads(sample(first.learner.plain.policy, step=2, first_draw=32)))
    assert report.metrics["kl_k3_token_mean"] > 1e-3


def test_a_snapshot_is_not_changed_by_updates_that_run_beside_its_writing(
    tiny_policy, sample, service, weights_of, changed, store
):
    policy = tiny_policy()
    first, second = service(policy, "a", **ADAPTIVE), service(policy, "b", **ADAPTIVE)
    stepped(first, policy, sample, 1)
    before = weights_of(first.learner)
    first.snapshot()
    stepped(first, policy, sample, 1, first=1)
    written = []
    writer = threading.Thread(target=lambda: written.append(first.write_snapshot(store.place(1))))
    writer.start()
    stepped(first, policy, sample, 2, first=2)
    writer.join(timeout=60)
    second.load(store.commit(1, written[0], {}, None).url)
    assert changed(before, weights_of(second.learner)) == []
    assert second.step == 1


def test_a_snapshot_is_written_once(tiny_policy, service, store):
    learner = service(tiny_policy())
    with pytest.raises(RuntimeError, match="take a snapshot before writing it"):
        learner.write_snapshot(store.place(0))
    save(learner, store)
    with pytest.raises(RuntimeError, match="each is written once"):
        learner.write_snapshot(store.place(0))


def test_what_is_loaded_is_a_copy(tiny_policy, sample, service, store):
    """Else training would write into the file, or into what another learner loads."""
    policy = tiny_policy()
    first, second = service(policy, "a"), service(policy, "b")
    stepped(first, policy, sample, 1)
    url = save(first, store)
    second.load(url)
    stepped(second, policy, sample, 2, first=1)
    assert store.newest_verified()[1] == []
    third = service(policy, "c")
    third.load(url)
    assert third.weights().hash == first.weights().hash


def test_after_a_load_the_weights_that_were_loaded_are_published(tiny_policy, sample, service, store):
    """Not those of an update that was not published any more."""
    policy = tiny_policy()
    learner = service(policy)
    url, before = save(learner, store), learner.weights()
    report = learner.update(payloads(sample(policy)))
    learner.load(url)
    assert f"{learner.weights().hash:016x}" == f"{before.hash:016x}" != report.weights_hash


@pytest.mark.parametrize("where", ["a weight", "the optimizer"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_what_is_not_finite_is_neither_published_nor_saved(tiny_policy, sample, service, store, where, number):
    policy = tiny_policy()
    learner = service(policy)
    stepped(learner, policy, sample, 1)
    url = save(learner, store)
    with torch.no_grad():
        if where == "a weight":
            learner.learner.plain.policy.model.norm.weight[3] = number
        else:
            next(iter(learner.learner.optimizers[0].state.values()))["exp_avg_sq"][0] = number
    learner.learner.flat.forget()  # the update looked at what it made, and nothing else changes weights behind its back
    for forbidden in (learner.snapshot, learner.weights):
        with pytest.raises(CorruptWeightsError, match=r"after update 1 hold (nan|inf): .* Go on from a checkpoint"):
            forbidden()
    learner.load(url)
    learner.snapshot()
    assert learner.weights().identity == Identity(0, 1)


def test_a_checkpoint_of_the_very_start_can_be_loaded(tiny_policy, sample, service, weights_of, changed, store):
    policy = tiny_policy()
    first, second = service(policy, "a"), service(tiny_policy(seed=1), "b")
    second.load(save(first, store))
    trajectories = sample(policy)
    for each in (first, second):
        each.update(payloads(trajectories))
    assert changed(weights_of(first.learner), weights_of(second.learner)) == []


def test_frozen_and_trained_layers_both_come_back(tiny_policy, sample, service, weights_of, changed, store):
    policy = tiny_policy()
    first = service(policy, "a", trainable_layers=1)
    stepped(first, policy, sample, 1)
    second = service(tiny_policy(seed=1), "b", trainable_layers=1)
    second.load(save(first, store))
    assert changed(weights_of(first.learner), weights_of(second.learner)) == []


@pytest.mark.parametrize("name", ["learner.safetensors", "learner.json", "manifest.json"])
@pytest.mark.parametrize("is_there", [True, False])
def test_a_damaged_checkpoint_is_named_and_leaves_the_learner_alone(
    tiny_policy, service, weights_of, changed, store, name, is_there
):
    """Which damages are noticed is tested in tests/common/test_checkpoint.py."""
    url = save(service(tiny_policy(), "a"), store)
    path = Path(url) / name
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0x40
    path.unlink()
    if is_there:
        path.write_bytes(content)
    other = service(tiny_policy(seed=1), "b")
    before = weights_of(other.learner)
    with pytest.raises(CheckpointError, match=name):
        other.load(url)
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
    tiny_policy, sample, service, weights_of, changed, store, other, settings
):
    policy = tiny_policy()
    first = service(policy, "a")
    stepped(first, policy, sample, 1)
    url = save(first, store)
    second = service(tiny_policy(seed=1, **other), "b", **settings)
    before = weights_of(second.learner)
    with pytest.raises(CheckpointError):
        second.load(url)
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
    assert columns["step"].tolist() == [0] * 16
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
    retried = [replace(t, rollout=replace(t.rollout, attempt=3, identity=Identity(2, 0))) for t in trajectories]
    files = []
    for name, lineage, chunks in (("a", 0, payloads(trajectories)), ("b", 2, payloads(retried, (16,)))):
        learner = service(policy, name, **ADAPTIVE)
        learner.learner.lineage = lineage
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


def test_an_update_without_a_finite_step_leaves_a_file_that_the_next_one_replaces(tiny_policy, sample, service):
    """It is evidence until then; a run that went on has the file that it would have had without it."""
    policy = tiny_policy()
    failing, other = service(policy, "a"), service(policy, "b")
    hook = failing.learner.plain.value_head.weight.register_hook(lambda gradient: gradient * float("nan"))
    path = trajectory_path(failing.folder / "trajectories", 1)
    report = failing.update(payloads(sample(policy)))
    assert (report.is_finite, report.step, report.trained) == (False, 0, ())
    assert read_trajectories(path)["draw_index"].tolist() == list(range(16))
    hook.remove()
    for each in (failing, other):
        assert each.update(payloads(sample(policy, first_draw=16))).step == 1
    assert path.read_bytes() == trajectory_path(other.folder / "trajectories", 1).read_bytes()
    assert read_trajectories(path)["draw_index"].tolist() == list(range(16, 32))
    assert [p.name for p in path.parent.iterdir()] == [path.name]


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
        torch.testing.assert_close(loaded(input_ids=ids).logits, expected)
        assert not torch.allclose(policy.eval()(input_ids=ids).logits, expected)
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


def test_the_state_of_a_checkpoint_is_json_that_anyone_can_read(tiny_policy, sample, service, store):
    policy = tiny_policy()
    learner = service(policy, **ADAPTIVE)
    stepped(learner, policy, sample, 1)
    state = json.loads((Path(save(learner, store)) / "learner.json").read_text())
    assert (state["step"], state["lineage"], state["threads"]) == (1, 0, 1)
    assert state["controller"]["coef"] == learner.learner.controller.coef
