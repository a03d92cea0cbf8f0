"""Which weights of a run are loaded, while it is whole, cut off, damaged, or at work."""

import shutil

import pytest
import torch

from common.checkpoint import read_shard, write_shard
from common.checkpoint_store import CheckpointStore
from common.errors import CheckpointError, ConfigError
from common.modeling import load_policy, save_policy
from deploy.evaluation.rivals import rival_path
from deploy.run_folder.lock import run_lock
from deploy.run_folder.models import RunModels, load_from_checkpoint


def weights(model):
    return torch.cat([parameter.detach().reshape(-1) for parameter in model.parameters()])


def is_equal(model, folder):
    return torch.equal(weights(model), weights(load_policy(str(folder))))


@pytest.fixture
def unfinished(run_copy):
    """A run whose PPO was cut off after its last checkpoint."""
    (run_copy / "stages" / "ppo.json").unlink()
    shutil.rmtree(run_copy / "models" / "ppo")
    return run_copy


def checkpoint_of(run):
    (folder,) = (run / "checkpoints").iterdir()
    return folder


def copy_checkpoint(run, step, *, score):
    """The checkpoint of a run once more, as if of another step and with other weights."""
    store = CheckpointStore(str(run / "checkpoints"), keep_last=9, keep_best=0)
    tensors, state = read_shard(store.checkpoints()[0].url)
    tensors = {name: tensor + step if "policy" in name else tensor for name, tensor in tensors.items()}
    shard = write_shard(store.place(step), tensors, {**state, "step": step})
    store.commit(step, shard, {}, score)


@pytest.mark.parametrize(("name", "folder"), [("pretrained", "pretrained"), ("sft", "sft"), ("ppo", "ppo")])
def test_a_stage_is_named(tiny_run, name, folder):
    policy = RunModels(tiny_run).named(name)
    assert is_equal(policy.model, tiny_run / "models" / folder)
    assert policy.is_trained == (name == "ppo")
    assert str(tiny_run / "models" / folder) in policy.words


def test_the_newest_of_a_finished_run_is_that_after_ppo(tiny_run):
    assert is_equal(RunModels(tiny_run).newest().model, tiny_run / "models" / "ppo")


def test_the_newest_of_a_run_that_was_cut_off_is_its_checkpoint(unfinished, tiny_run):
    policy = RunModels(unfinished).newest()
    assert is_equal(policy.model, tiny_run / "models" / "ppo"), "the last checkpoint holds what was exported"
    assert policy.words == f"after 3 updates of PPO ({checkpoint_of(unfinished)})"
    assert policy.is_trained


def test_without_a_checkpoint_it_is_what_the_stages_left(unfinished):
    shutil.rmtree(unfinished / "checkpoints")
    assert is_equal(RunModels(unfinished).newest().model, unfinished / "models" / "sft")
    (unfinished / "stages" / "sft.json").unlink()
    assert is_equal(RunModels(unfinished).newest().model, unfinished / "models" / "pretrained")
    (unfinished / "stages" / "pretrain.json").unlink()
    with pytest.raises(ConfigError, match="no finished 'pretrained'; there are: none"):
        RunModels(unfinished).newest()


def test_a_stage_that_is_not_done_is_refused_with_what_is_there(unfinished):
    with pytest.raises(ConfigError, match=r"'ppo'; there are: pretrained, sft, checkpoints of updates 3 \(--checkp"):
        RunModels(unfinished).named("ppo")


def test_checkpoints_are_chosen_by_step_by_age_and_by_score(run_copy):
    copy_checkpoint(run_copy, 5, score=2.0)
    copy_checkpoint(run_copy, 9, score=1.0)
    run = RunModels(run_copy)
    assert [run.checkpoint(which).words.split()[1] for which in ("3", "5", "latest")] == ["3", "5", "9"]
    assert run.checkpoint("best").words.split()[1] == "5"
    assert not torch.equal(weights(run.checkpoint("3").model), weights(run.checkpoint("5").model))


@pytest.mark.parametrize(
    ("which", "error", "said"),
    [
        ("7", CheckpointError, "no checkpoint of update 7; there are 3"),
        ("newest", ConfigError, "legal are latest, best, or an update; there are 3"),
    ],
)
def test_a_checkpoint_that_is_not_there_is_refused_with_those_that_are(tiny_run, which, error, said):
    with pytest.raises(error, match=said):
        RunModels(tiny_run).checkpoint(which)


@pytest.mark.parametrize("which", ["latest", "3", "best"])
def test_a_damaged_checkpoint_is_refused(run_copy, which):
    path = checkpoint_of(run_copy) / "learner.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    with pytest.raises(CheckpointError, match=r"learner\.safetensors"):
        RunModels(run_copy).checkpoint(which)


def test_a_checkpoint_of_another_model_changes_nothing(run_copy, tiny_run):
    run = RunModels(run_copy)
    policy = load_policy(str(tiny_run / "models" / "sft"))
    policy.resize_token_embeddings(70)
    before = weights(policy).clone()
    with pytest.raises(CheckpointError, match="is of another model"):
        load_from_checkpoint(policy, run._choose("latest"))
    assert torch.equal(weights(policy), before)


def test_a_run_at_work_is_only_read(run_copy):
    def content():
        return {path: path.read_bytes() for path in sorted(run_copy.rglob("*")) if path.is_file()}

    with run_lock(run_copy):
        before = content()
        run = RunModels(run_copy)
        run.newest()
        run.checkpoint("latest")
        assert content() == before


def test_classifiers_are_there_once_their_stage_is_done(run_copy):
    run = RunModels(run_copy)
    assert run.classifier("judge") == str(run_copy / "models" / "judge")
    (run_copy / "stages" / "judge.json").unlink()
    assert run.classifier("judge") is None


def test_a_configuration_of_another_version_says_how_to_go_on(run_copy):
    path = run_copy / "config.toml"
    path.write_text(path.read_text() + "\n[unheard_of]\nx = 1\n")
    with pytest.raises(ConfigError, match="unheard_of") as caught:
        RunModels(run_copy)
    assert f"{run_copy}/models/ppo" in caught.value.__notes__[0]


def test_a_checkpoint_of_an_unfinished_run_is_left_as_a_folder_that_a_run_can_be_evaluated_against(
    unfinished, tiny_run, tmp_path
):
    policy = RunModels(unfinished).checkpoint("latest")
    save_policy(policy.model, policy.tokenizer, tmp_path / "at-latest")
    assert is_equal(load_policy(rival_path("at-latest", tmp_path)), tiny_run / "models" / "ppo")
