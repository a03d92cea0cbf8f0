"""The complete example of docs/models.md, and a run from a GGUF file: SFT and PPO on a model that somebody brings."""

import io
import json
import re
import runpy
from pathlib import Path

import pytest
import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.config import RunConfig
from common.config_file import load_config
from common.text import eos_token_ids, load_tokenizer
from deploy.fingerprint import fingerprint
from deploy.local import LocalRuntime
from deploy.pipeline import Pipeline
from deploy.preflight.models import check_models, input_paths
from learner.trajectory_file import read_trajectories

GUIDE = Path(__file__).parents[2] / "docs" / "models.md"


def block(language: str, *, begins: str) -> str:
    """The block of the guide in a language that begins with these words."""
    found = re.findall(rf"^```{language}\n(.*?)^```$", GUIDE.read_text(encoding="utf-8"), flags=re.M | re.S)
    (chosen,) = [text for text in found if text.startswith(begins)]
    return chosen


@pytest.fixture
def example(tmp_path, monkeypatch) -> RunConfig:
    """The guide's model folder and its configuration."""
    monkeypatch.chdir(tmp_path)
    Path("make_model.py").write_text(block("python", begins="from tokenizers"), encoding="utf-8")
    Path("mine.toml").write_text(block("toml", begins='name = "mine"'), encoding="utf-8")
    torch.manual_seed(0)
    runpy.run_path("make_model.py")
    return load_config(Path("mine.toml"))


def run(config: RunConfig, folder: Path) -> list[str]:
    """Run the pipeline; returns the stages that were run."""
    console = Console(file=io.StringIO(), width=200)
    Pipeline(config, folder, start_runtime=LocalRuntime, console=console).run()
    told = [line.removeprefix("✓ ") for line in console.file.getvalue().splitlines() if line.startswith("✓")]
    return [line.split()[0] for line in told if "done before" not in line]


def test_the_guides_example_runs_and_leaves_a_model_that_ends_where_the_first_did(example, tmp_path):
    assert not [finding.failure for finding in check_models(example) if finding.failure]
    assert run(example, tmp_path / "run") == ["sft", "reward_model", "ppo"]
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert all(line["metrics"]["logprob_gap_max"] < 1e-4 for line in lines)
    assert abs(lines[0]["metrics"]["kl_token_mean"]) < 1e-6

    folder = tmp_path / "run" / "models" / "ppo"
    tokenizer = load_tokenizer(str(folder))
    assert eos_token_ids(str(folder), tokenizer) == {0, 2}
    assert tokenizer.chat_template == AutoTokenizer.from_pretrained("my-model").chat_template
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.eos_token_id == [0, 2]
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight


def test_the_examples_responses_end_at_either_id_and_hold_ids_beyond_the_tokenizer(example, tmp_path):
    ppo = example.ppo.model_copy(update={"trajectories_per_update": 128, "updates": 1})
    run(example.model_copy(update={"ppo": ppo, "sft": None}), tmp_path / "run")
    samples = read_trajectories(tmp_path / "run" / "trajectories" / "update_000001.safetensors")
    ended = [ids for ids, cut in zip(samples["response_ids"], samples["truncated"], strict=True) if not cut]
    assert {int(ids[-1]) for ids in ended} == {0, 2}
    assert not any({0, 2} & set(ids[:-1].tolist()) for ids in samples["response_ids"])
    assert any((ids >= 259).any() for ids in samples["response_ids"]), "no id beyond the tokenizer was sampled"


@pytest.fixture
def from_gguf(tiny, tiny_gguf):
    """A run of `tiny` from a GGUF file, its PPO alone."""
    settings = tiny("sft.max_tokens=32", "ppo.updates=1", "ppo.trainable_layers=1", "ppo.reference=shared_trunk")
    values = settings.model_dump() | {"pretrain": None, "sft": None, "evaluate": None, "judge": None}
    return RunConfig.model_validate(values | {"model": {"type": "gguf", "path": str(tiny_gguf[0])}})


def test_a_gguf_file_is_unpacked_once_and_trained(from_gguf, tiny_gguf, tmp_path):
    assert run(from_gguf, tmp_path / "run") == ["base", "reward_model", "ppo"]
    assert run(from_gguf, tmp_path / "run") == []
    weights = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "models" / "ppo").state_dict()
    moved = {name for name, weight in tiny_gguf[1].items() if not torch.equal(weights[name], weight)}
    assert moved
    assert all(name.startswith(("model.layers.1.", "model.norm.")) for name in moved)
    (tmp_path / "run" / "models" / "base" / "model.safetensors").write_bytes(b"")
    assert run(from_gguf, tmp_path / "run") == ["base"], "damaged, made anew from the same file: PPO's inputs are equal"


def test_another_gguf_file_is_another_base_and_no_setting_of_the_run_is(from_gguf, tiny, tiny_gguf, tmp_path):
    before = fingerprint(from_gguf, "base", {})
    path = tmp_path / "moved.gguf"
    path.write_bytes(tiny_gguf[0].read_bytes())
    moved = from_gguf.model_copy(update={"seed": 8, "model": from_gguf.model.model_copy(update={"path": str(path)})})
    assert fingerprint(moved, "base", {}) == before
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    assert fingerprint(moved, "base", {}) != before


def test_the_preflight_knows_a_gguf_model_by_its_metadata(from_gguf, tiny_gguf):
    (finding,) = check_models(from_gguf)
    assert finding.failure == ""
    assert "tiny.gguf: llama, " in finding.measured
    assert "259 tokens, 64 positions" in finding.measured
    assert str(tiny_gguf[0]) in input_paths(from_gguf)


@pytest.mark.parametrize(
    ("model", "ppo", "said"),
    [
        ({"path": "/nowhere/x.gguf"}, {}, "model: model.path='/nowhere/x.gguf' is no file"),
        (
            {"path": None, "package": "no_such_wheel", "file": "x.gguf", "install": "wheel==1"},
            {},
            "pip install wheel==1",
        ),
        ({}, {"trainable_layers": 3}, "ppo.trainable_layers=3 exceeds the 2 layers"),
        ({}, {"response_tokens": {"min": 4, "max": 99}}, "responses of 99 tokens do not fit the model's 64 positions"),
    ],
)
def test_the_preflight_names_what_is_wrong_with_a_gguf_model(from_gguf, model, ppo, said):
    values = from_gguf.model_dump()
    values["model"] |= model
    values["ppo"] |= ppo
    (finding,) = check_models(RunConfig.model_validate(values))
    assert said in finding.failure
