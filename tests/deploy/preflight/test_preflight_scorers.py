"""A function that cannot score is found before the first stage, by asking it in a process of its own."""

import sys
from pathlib import Path

import psutil
import pytest

from common.errors import ConfigError
from deploy.preflight.scorers import check_scorers
from deploy.run import run_pipeline

CALLABLES = Path(__file__).parents[2] / "reward_service" / "callables"


@pytest.fixture(autouse=True)
def _callables(monkeypatch):
    monkeypatch.syspath_prepend(str(CALLABLES))


@pytest.fixture
def config_of(tiny):
    """`tiny` with the named functions of tiny_rewards beside the model."""

    def build(*functions, more=""):
        tables = [f"{{type='function', name='{f}', callable='tiny_rewards:{f}'{more}}}" for f in functions]
        return tiny(f"reward_service.scorers=[{{type='model'}}, {', '.join(tables)}]")

    return build


def test_every_function_scores_the_probe_text_and_nothing_of_it_reaches_this_process(config_of):
    children = set(psutil.Process().children())
    found = check_scorers(config_of("length", "of_a_library"), may_differ=False)
    assert [(finding.check, finding.failure) for finding in found] == [
        ("scorer length", ""),
        ("scorer of_a_library", ""),
    ]
    assert found[0].measured.startswith("tiny_rewards:length scores the probe text 31.09, in ")
    assert "tiny_rewards" not in sys.modules
    assert set(psutil.Process().children()) <= children, "a function's process was left behind"


@pytest.mark.parametrize(
    ("function", "more", "why"),
    [
        ("no_such", "", "scorer no_such: callable 'tiny_rewards:no_such' cannot be imported: AttributeError"),
        ("length", ", arguments={n=1}", "cannot be called with (prompts, responses) and arguments = {'n': 1}: got an"),
        (
            "one_number",
            "",
            "the probe text 'This film is good, and I like the story.' cannot be scored: reward_shape: "
            "tiny_rewards:one_number: it returned float, not a list of 1 numbers; a scorer must give it one finite",
        ),
        (
            "always_one",
            "",
            "tiny_rewards:always_one, asked for two texts: got 1 scores for 2 texts; give each one number",
        ),
    ],
)
def test_a_function_that_cannot_score_says_why(config_of, function, more, why):
    (finding,) = check_scorers(config_of(function, more=more), may_differ=False)
    assert why in finding.failure


def test_a_number_that_is_not_finite_is_no_score(tiny, tmp_path, monkeypatch):
    (tmp_path / "nan_rewards.py").write_text("def score(prompts, responses): return [float('nan')]", encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    config = tiny("reward_service.scorers=[{type='function', callable='nan_rewards:score'}]")
    (finding,) = check_scorers(config, may_differ=False)
    assert "cannot be scored: reward_nonfinite: " in finding.failure


def test_what_fails_here_is_only_told_where_replicas_may_be_elsewhere(config_of):
    (finding,) = check_scorers(config_of("no_such"), may_differ=True)
    assert not finding.failure
    assert finding.measured.startswith("not on this machine, and so perhaps not where replicas run: callable")


def test_a_run_without_ppo_asks_no_function(config_of):
    config = config_of("no_such").model_copy(update={"ppo": None, "evaluate": None})
    assert check_scorers(config, may_differ=False) == []


def test_a_run_is_told_before_its_first_stage(config_of, tmp_path):
    with pytest.raises(ConfigError, match="'tiny_rewards:no_such' cannot be imported"):
        run_pipeline(config_of("no_such"), tmp_path / "run", local=True, address=None, again=frozenset())
    assert {path.name for path in (tmp_path / "run").iterdir()} == {".lock", "config.toml", "ended.json"}
