"""The command `minichatgpt` as a user meets it: help at once, errors in one message, files where they belong."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from common.config_file import load_config, to_toml
from deploy import exit_codes
from deploy.cli import main

ROOT = Path(__file__).parents[2]
ENTRY = Path(sysconfig.get_path("scripts")) / "minichatgpt"
HEAVY = ("torch", "ray", "transformers", "datasets")


def command(*arguments: str, folder: Path | None = None, entry: tuple[str, ...] = (sys.executable, "-m", "deploy")):
    """Run the command in a process of its own, in a terminal that is wide and has no colours."""
    environment = {**os.environ, "COLUMNS": "300", "NO_COLOR": "1", "TERM": "dumb", "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [*entry, *arguments], cwd=folder or ROOT, env=environment, capture_output=True, text=True, timeout=300
    )


def refused(*arguments: str, folder: Path | None = None) -> str:
    """What a command that cannot be done says."""
    done = command(*arguments, folder=folder)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
    return done.stderr


@pytest.mark.parametrize(
    "command_name", [[], *([c] for c in ("run", "launch", "preflight", "report", "config", "status", "scale", "stop"))]
)
def test_help_is_given(command_name):
    done = command(*command_name, "--help")
    assert done.returncode == 0
    assert "Usage:" in done.stdout


def test_help_of_run_shows_examples():
    shown = command("run", "--help").stdout
    for example in ("minichatgpt run demo", "minichatgpt run tiny --local", "--set rollout.workers=4 --again ppo"):
        assert example in shown


def test_help_of_run_lists_every_exit_code():
    shown = command("run", "--help").stdout.partition("Exit codes")[2]
    codes = {value for name, value in vars(exit_codes).items() if name.isupper()} | {2}
    assert {
        int(line.split()[0]) for line in shown.splitlines() if line.split()[:1] and line.split()[0].isdigit()
    } == codes


def test_without_arguments_help_is_given():
    assert "Usage:" in (done := command()).stdout + done.stderr


@pytest.mark.skipif(not ENTRY.exists(), reason=f"{ENTRY} is not installed")
def test_the_installed_command_is_the_same():
    done = command("config", "validate", "tiny", entry=(str(ENTRY),))
    assert (done.returncode, done.stdout) == (0, command("config", "validate", "tiny").stdout)


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["run", "--help"],
        ["config", "show", "tiny"],
        ["run", "nope"],
        ["report", "nope"],
        ["status", "nope"],
        ["scale", "nope", "--rollout-workers", "2"],
        ["checkpoint", "nope"],
        ["stop", "nope"],
    ],
)
def test_nothing_heavy_is_imported_before_it_is_needed(arguments):
    code = (
        "import sys, deploy.cli\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "try:\n deploy.cli.main()\nexcept SystemExit:\n pass\n"
        f"print('heavy', [m for m in {HEAVY} if m in sys.modules])"
    )
    done = command(entry=(sys.executable, "-c", code))
    assert done.stdout.splitlines()[-1] == "heavy []", done.stderr


# --- config


def test_show_prints_what_reads_back_equal(tmp_path):
    done = command("config", "show", "tiny", "--set", "ppo.clip_eps=0.1")
    assert done.returncode == 0
    (tmp_path / "shown.toml").write_text(done.stdout, encoding="utf-8")
    shown = load_config(tmp_path / "shown.toml")
    assert shown == load_config(ROOT / "deploy/configs/tiny.toml", ["ppo.clip_eps=0.1"])


def test_validate_takes_a_file_or_a_name(tmp_path):
    by_file = command("config", "validate", str(ROOT / "deploy/configs/tiny.toml"), folder=tmp_path)
    by_name = command("config", "validate", "tiny", folder=tmp_path)
    assert by_file.returncode == by_name.returncode == 0
    assert by_file.stdout == by_name.stdout == "✓ tiny is valid\n"


@pytest.mark.parametrize("how", [["config", "validate"], ["config", "show"], ["run"]])
def test_what_cannot_be_run_is_said_in_one_message(how, tmp_path):
    message = refused(*how, "tiny", "--set", "ppo.clip_epps=0.1", "--set", "rollout.workers=0", folder=tmp_path)
    assert message.splitlines()[0] == "ConfigError"
    assert "ppo: unknown key 'clip_epps': did you mean 'clip_eps'?" in message
    assert "rollout.workers: " in message
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_square_brackets_in_messages_are_kept(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("name = 'mine'\n[model]\ntype = 'fresh'\n", encoding="utf-8")
    assert "add a [pretrain] table" in refused("config", "validate", str(path))


def test_an_unknown_configuration_names_those_that_come_along():
    message = refused("run", "tinny")
    assert "tinny does not exist" in message
    for path in (ROOT / "deploy" / "configs").glob("*.toml"):
        assert path.stem in message


def test_a_folder_of_the_same_name_does_not_hide_a_configuration(tmp_path):
    (tmp_path / "tiny").mkdir()
    assert command("config", "validate", "tiny", folder=tmp_path).returncode == 0


def test_an_unknown_file_names_its_neighbours(tmp_path):
    (tmp_path / "mine.toml").write_text("", encoding="utf-8")
    assert "its folder has mine.toml" in refused("run", "nine.toml", folder=tmp_path)


def test_a_malformed_change_shows_the_form():
    assert "is not of the form a.b=value, as in --set ppo.clip_eps=0.1" in refused("run", "tiny", "--set", "ppo")


# --- preflight


def test_preflight_shows_what_it_measured_and_leaves_nothing(tmp_path):
    done = command("preflight", "tiny", "--local", folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "✓ data.reviews 32 inline texts" in done.stdout
    assert done.stdout.endswith("tiny can start.\n")
    assert not list(tmp_path.iterdir())


def test_preflight_shows_all_that_is_in_the_way(tmp_path):
    missing = 'data.a={type="files", paths=["a.csv"]}'
    changes = ["--set", missing, "--set", 'sft.data=["a"]', "--set", "ppo.checkpoint_url=s4://x"]
    done = command("preflight", "tiny", "--local", *changes, folder=tmp_path)
    assert done.returncode == 1
    assert "✗ data.a: a.csv does not exist" in done.stdout
    assert "✗ ppo.checkpoint_url: s4://x cannot be opened" in done.stdout
    assert done.stdout.endswith("tiny cannot start, for 2 reasons.\n")


# --- run and report: in this process, which has imported all that is heavy


@pytest.fixture
def inside(monkeypatch, capsys):
    """Runs the command here; returns exit code, output and errors."""
    monkeypatch.setenv("COLUMNS", "300")

    def call(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["minichatgpt", *arguments])
        code = 0
        try:
            main()
        except SystemExit as ended:
            code = ended.code or 0
        return code, *capsys.readouterr()

    return call


def test_again_of_an_unknown_stage_names_those_there_are(tmp_path, inside):
    code, _, message = inside("run", "tiny", "--local", "--again", "pop", "--runs", str(tmp_path / "runs"))
    assert code == 1
    assert "--again pop: no stage of this configuration" in message
    assert "pretrain, sft, reward_model, judge, ppo, evaluate" in message
    assert not list(tmp_path.iterdir())


def test_local_and_a_cluster_do_not_go_together(tmp_path):
    message = refused("run", "tiny", "--local", "--address", "auto", folder=tmp_path)
    assert "--local runs without Ray" in message


def test_a_finished_run_prints_its_summary_again(run_copy, inside):
    code, shown, _ = inside("run", "tiny", "--local", "--runs", str(run_copy.parent))
    assert code == 0
    assert shown.count("done before, same inputs") == 6
    assert "Win rate" in shown
    assert "Report" in shown


def test_a_whole_run_from_the_command_line(tmp_path):
    changes = ["pretrain.epochs=1", "ppo.updates=1", "ppo.epochs=1", "evaluate.prompts=4", "name=short"]
    options = [option for change in changes for option in ("--set", change)]
    done = command("run", "tiny", "--local", *options, folder=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Win rate" in done.stdout
    summary = json.loads((tmp_path / "runs" / "short" / "summary.json").read_text(encoding="utf-8"))
    assert summary["updates"] == 1
    expected = to_toml(load_config(ROOT / "deploy/configs/tiny.toml", changes))
    assert (tmp_path / "runs" / "short" / "config.toml").read_text(encoding="utf-8") == expected


def test_report_writes_the_page_anew(run_copy, inside):
    (run_copy / "report.html").unlink()
    (run_copy / "summary.json").unlink()
    code, shown, _ = inside("report", "tiny", "--runs", str(run_copy.parent))
    assert code == 0
    assert "Win rate" in shown
    assert (run_copy / "report.html").is_file()
    assert (run_copy / "summary.json").is_file()
    assert inside("report", str(run_copy)) == (0, shown, ""), "a folder is as good as a name"


def test_report_of_an_unknown_run_lists_those_there_are(tmp_path):
    for name in ("other", "tiny", ".cache"):
        (tmp_path / name).mkdir()
    message = refused("report", "tinny", "--runs", str(tmp_path))
    assert "tinny does not exist" in message
    assert message.rstrip().endswith("other, tiny")


def test_report_where_nothing_was_run_says_so(tmp_path):
    assert "there is no run in the folder nowhere" in refused("report", "tiny", "--runs", "nowhere", folder=tmp_path)


def test_report_of_a_damaged_run_names_the_file(run_copy, inside):
    (run_copy / "stages" / "sft.json").write_text("{", encoding="utf-8")
    code, _, message = inside("report", "tiny", "--runs", str(run_copy.parent))
    assert code == 1
    assert message.startswith("DataError\n")
    assert "sft.json cannot be read" in message
