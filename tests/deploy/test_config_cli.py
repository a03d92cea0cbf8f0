"""`minichatgpt config explain` and `fields`: for people, for programs, and what cannot be done is said."""

import json
import sys

import pytest

from deploy.cli import main
from deploy.config_fields import settings


@pytest.fixture
def inside(monkeypatch, capsys):
    """Runs the command here; returns exit code, output and errors."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")  # put back afterwards

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["minichatgpt", "config", *arguments])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        return code, *capsys.readouterr()

    return call


@pytest.mark.parametrize("command", ["show", "validate", "explain", "fields"])
def test_help_shows_examples(inside, command):
    code, shown, _ = inside(command, "--help")
    assert code == 0
    assert f"minichatgpt config {command}" in shown


def test_a_figure_is_shown_with_what_it_follows_from(inside):
    code, shown, _ = inside("explain", "tiny", "--set", "ppo.epochs=3")
    assert code == 0
    (line,) = [line for line in shown.splitlines() if line.startswith("optimizer steps per update")]
    assert line.split()[4] == "6"
    assert "32 trajectories ÷ 16 = 2 steps × 3 epochs" in line
    titles = {"Policy", "PPO: what is optimized", "Memory of the learner", "Weights on their way", "Disk"}
    assert titles <= {line.strip() for line in shown.splitlines()}


def test_programs_get_bare_numbers(inside):
    code, shown, _ = inside("explain", "tiny", "--json")
    assert code == 0
    said = json.loads(shown)
    assert said["name"] == "tiny"
    assert said["optimizing"]["steps"] == 12
    assert said["traffic"]["bytes_per_publish"] == 4 * said["model"]["parameters"]


def test_what_cannot_be_explained_is_refused_as_by_run(inside):
    code, shown, message = inside("explain", "tiny", "--set", "ppo.minibatch_sequences=7")
    assert (code, shown) == (1, "")
    assert "must divide by minibatch_sequences=7" in message


def test_settings_are_found_by_a_part_of_their_name(inside):
    code, shown, _ = inside("fields", "ppo.kl.")
    assert code == 0
    assert 'ppo.kl.target  (type = "adaptive") = 6.0' in shown
    assert "Wanted value of the measure, in nats" in shown
    assert "rollout" not in shown


def test_without_a_name_all_settings_are_shown(inside):
    shown = inside("fields")[1].splitlines()
    names = [line.split()[0] for line in shown if line and not line.startswith(" ")]
    assert names == [setting.path for setting in settings()]


def test_what_may_change_is_marked(inside):
    assert "rollout.workers = 2  ↻ may change" in inside("fields", "rollout.workers")[1]


def test_an_unknown_setting_names_its_neighbours(inside):
    code, shown, message = inside("fields", "ppo.clip_epps")
    assert (code, shown) == (1, "")
    assert "no setting has 'ppo.clip_epps' in its name; did you mean clip_eps" in message
