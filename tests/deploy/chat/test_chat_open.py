"""From a name to a policy, or to an error that says what there is."""

import pytest

from actors.chat import Sampling
from common.errors import ConfigError
from deploy.chat.open import open_policy


def opened(name, runs, model=None, checkpoint=None):
    return open_policy(str(name), runs, model=model, checkpoint=checkpoint)


def test_a_run_is_found_by_name_and_by_folder(tiny_run, tmp_path):
    by_name = opened("tiny", tiny_run.parent)
    by_folder = opened(tiny_run, tmp_path)
    assert by_name.policy.words == by_folder.policy.words
    assert by_folder.run.folder == tiny_run


def test_answers_of_a_run_are_drawn_as_in_its_ppo(tiny_run):
    ppo = opened("tiny", tiny_run.parent).run.config.ppo
    assert opened("tiny", tiny_run.parent).sampling == Sampling(
        temperature=ppo.temperature, max_tokens=ppo.response_tokens.max
    )


def test_a_model_folder_belongs_to_no_run(tiny_run, tmp_path):
    found = opened(tiny_run / "models" / "sft", tmp_path)
    assert found.run is None
    assert found.sampling == Sampling()
    assert found.policy.words.startswith("LlamaForCausalLM of ")


def test_a_folder_of_that_name_that_is_neither_does_not_hide_a_run(tiny_run, tmp_path, monkeypatch):
    (tmp_path / "tiny").mkdir()
    monkeypatch.chdir(tmp_path)
    assert opened("tiny", tiny_run.parent).run is not None


@pytest.mark.parametrize("role", ["reward_model", "judge"])
def test_a_classifier_is_refused(tiny_run, tmp_path, role):
    with pytest.raises(ConfigError, match="classifiers do not speak"):
        opened(tiny_run / "models" / role, tmp_path)


def test_a_folder_that_is_nothing_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"neither a run \(it has no config.toml\) nor a model"):
        opened(tmp_path, tmp_path)


def test_a_name_that_nobody_knows_names_the_runs(tiny_run):
    with pytest.raises(ConfigError, match="cannot load 'tinny'") as caught:
        opened("tinny", tiny_run.parent)
    assert "tiny" in caught.value.__notes__[0]


@pytest.mark.parametrize("choice", [{"model": "sft"}, {"checkpoint": "latest"}])
def test_only_a_run_has_stages_and_checkpoints(tiny_run, tmp_path, choice):
    with pytest.raises(ConfigError, match="is no run"):
        opened(tiny_run / "models" / "sft", tmp_path, **choice)


def test_two_choices_at_once_are_refused(tiny_run):
    with pytest.raises(ConfigError, match="name two policies"):
        opened("tiny", tiny_run.parent, model="sft", checkpoint="3")


def test_a_gguf_file_is_refused_with_how_it_is_unpacked(tmp_path):
    (tmp_path / "x.gguf").write_bytes(b"GGUF\x03")
    with pytest.raises(ConfigError, match=r'type = "gguf" and path = ".*x\.gguf", then take .*--model pretrained'):
        opened(tmp_path / "x.gguf", tmp_path)
    (tmp_path / "weights.bin").write_bytes(b"PK12")
    with pytest.raises(ConfigError, match=r"weights\.bin is a file; name a run, or the folder of a model"):
        opened(tmp_path / "weights.bin", tmp_path)
