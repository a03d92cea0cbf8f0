"""The example of docs/rewards.md, taken from the page and run."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

from common.config_file import load_config, to_toml
from deploy.preflight.preflight import preflight
from deploy.preflight.runtime_facts import RuntimeFacts
from deploy.run import run_pipeline
from learner.trajectory_file import read_trajectories

GUIDE = Path(__file__).parents[2] / "docs" / "rewards.md"


@pytest.fixture
def example(tiny, tmp_path):
    """The configuration that a reader has made by the end of the example."""
    section = GUIDE.read_text(encoding="utf-8").split("### Example")[1].split("\n## ")[0]
    (table,) = re.findall(r"```toml\n(.*?)```", section, re.DOTALL)
    (command,) = re.findall(r"^minichatgpt run mine\.toml .*$", section, re.MULTILINE)
    words = shlex.split(command)
    path = tmp_path / "mine.toml"
    path.write_text(to_toml(tiny()) + table, encoding="utf-8")
    return load_config(path, [words[i + 1] for i, word in enumerate(words) if word == "--set"])


def test_the_example_runs_and_every_part_is_in_the_record(example, run_copy):
    preflight(example, run_copy, RuntimeFacts())
    run_pipeline(example, run_copy, local=True, address=None, again=frozenset({"ppo"}))
    scored = []
    for path in sorted((run_copy / "trajectories").iterdir()):
        update = read_trajectories(path)
        for name in ("repetition", "length"):
            part = update[f"score_part.{name}"]
            assert ((part >= -1) & (part <= 0)).all()
            assert part.min() < 0, "nothing was wrong anywhere: the example shows nothing"
        expected = update["score_part.reward_model"] + 2 * update["score_part.repetition"] + update["score_part.length"]
        np.testing.assert_allclose(update["score"], expected)
        scored.append(update["score"])
    assert example.ppo.score_normalization.type == "running"
    assert example.ppo.score_clip == 3
    assert len(scored) == 3


def test_every_penalty_of_the_page_is_one_that_can_be_called(tiny, run_copy):
    names = re.findall(r"^\| `(\w+)` \| ", GUIDE.read_text(encoding="utf-8").split("## Ready-made")[1], re.MULTILINE)
    assert names[:4] == ["length", "repetition", "non_ascii", "empty"]
    scorers = ", ".join(f"{{type='function', name='{n}', callable='reward_service.penalties:{n}'}}" for n in names[:4])
    preflight(tiny(f"reward_service.scorers=[{scorers}]"), run_copy, RuntimeFacts())
