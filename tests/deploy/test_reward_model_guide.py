"""The examples of docs/reward-model.md, taken from the page and run from its configuration to a policy."""

import json
import re
import tomllib
from pathlib import Path

import pytest

from common.config_file import load_config, parse_config
from deploy.preflight.preflight import preflight
from deploy.preflight.runtime_facts import RuntimeFacts
from deploy.report.preferences import preference_measures
from deploy.run import run_pipeline
from deploy.run_folder.contents import read_run

GUIDE = Path(__file__).parents[2] / "docs" / "reward-model.md"
CONFIGS = Path(__file__).parents[2] / "deploy" / "configs"


@pytest.fixture
def example(tmp_path, monkeypatch):
    """The configuration `tiny` with what an example of the page puts into it, in a folder with the example's file."""

    def make(name):
        section = GUIDE.read_text(encoding="utf-8").split(f"<!-- example: {name} -->")[1].split("\n## ")[0]
        blocks = dict(re.findall(r"```(toml|jsonl)\n(.*?)```", section, re.DOTALL))
        page = tomllib.loads(blocks["toml"])
        document = tomllib.loads((CONFIGS / "tiny.toml").read_text(encoding="utf-8"))
        document["data"] |= page["data"]
        document["reward_model"] = page["reward_model"]
        document["ppo"]["updates"] = 1
        monkeypatch.chdir(tmp_path)
        for source in page["data"].values():
            for path in source.get("paths", []):
                Path(path).write_text(blocks["jsonl"], encoding="utf-8")
        return parse_config(document, where=name)

    return make


@pytest.mark.parametrize("name", ["pairs", "rankings", "derived"])
def test_an_example_of_the_page_trains_a_reward_model_that_ppo_uses(example, run_copy, name):
    """In a copy of a finished run of `tiny`, so that only the reward model, PPO and the evaluation are to be run."""
    config = example(name)
    preflight(config, run_copy, RuntimeFacts())
    run_pipeline(config, run_copy, local=True, address=None, again=frozenset({"ppo"}))
    stage = json.loads((run_copy / "stages" / "reward_model.json").read_text(encoding="utf-8"))
    assert stage["metrics"]["rankings"] + stage["metrics"]["heldout_rankings"] >= 6
    assert list(stage["inputs"]) == (["policy"] if name == "pairs" else [])
    summary = read_run(run_copy).summary
    assert summary.rm_accuracy == stage["metrics"]["accuracy"]
    assert summary.rm_preferences.heldout_pairs >= summary.rm_preferences.heldout_rankings >= 1
    assert summary.updates == 1
    assert preference_measures(summary)
    assert "Scores of held-out texts" in (run_copy / "report.html").read_text(encoding="utf-8")


def test_what_the_packaged_configuration_says_is_what_the_page_tells():
    config = load_config(CONFIGS / "preferences.toml")
    demo = load_config(CONFIGS / "demo.toml")
    assert config.reward_model.training.type == "preferences"
    assert {config.data[name].rows.type for name in config.reward_model.training.data} == {"label_pairs"}
    assert (config.reward_model.training.half, config.judge.training.half) == ("a", "b")
    assert (config.pretrain, config.model) == (demo.pretrain, demo.model)  # so that the cache serves both


@pytest.mark.parametrize(
    "named",
    ["accuracy_longer", "score_histogram", "length_spearman", "calibration_error", "left_out", "rm_preferences"],
)
def test_the_page_names_what_a_stage_measures(named):
    assert f"`{named}`" in GUIDE.read_text(encoding="utf-8")
