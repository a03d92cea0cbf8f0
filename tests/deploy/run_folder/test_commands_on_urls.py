"""`--runs` as a URL: who trains works there; others say how to have a copy; preflight says what lacks."""

import pytest
from botocore.exceptions import NoCredentialsError
from fsspec.implementations.memory import MemoryFileSystem
from huggingface_hub import constants
from typer.main import get_command
from typer.testing import CliRunner

from common.errors import ConfigError
from common.run_place import workplace
from deploy.cli import app
from deploy.preflight.runtime_facts import RuntimeFacts
from deploy.preflight.storage import check_storage
from deploy.preflight.storage_probe import Probe, answer_probe

WORK_THERE = {"run", "preflight", "launch"}


def readers():
    commands = get_command(app).commands
    return sorted(
        name for name, c in commands.items() if name not in WORK_THERE and any("--runs" in p.opts for p in c.params)
    )


def arguments(name):
    """As many as the command demands."""
    needed = [p for p in get_command(app).commands[name].params if p.required and p.param_type_name == "argument"]
    return ["1"] * sum(max(1, p.nargs) for p in needed)


def test_there_are_commands_that_read_run_folders():
    assert {"report", "status", "stop", "logs", "samples", "replay", "compare", "chat", "watch"} <= set(readers())


@pytest.mark.parametrize("name", readers())
def test_a_command_that_reads_disks_refuses_a_url_and_says_what_to_do(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = CliRunner().invoke(app, [name, *arguments(name), "--runs", "s3://bucket/runs"])
    assert isinstance(answer.exception, ConfigError), answer.output
    assert "aws s3 cp --recursive s3://bucket/runs/NAME runs/NAME" in str(answer.exception)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words", [("compare", "s3://bucket/tiny", "demo"), ("chat", "s3://b/tiny"), ("report", "s3://b/x")]
)
def test_a_url_in_the_place_of_a_name_is_told_too(words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    answer = CliRunner().invoke(app, list(words))
    assert f"{words[1]}: this command reads run folders on disks only" in str(answer.exception)
    assert f"aws s3 cp --recursive {words[1]} runs/" in str(answer.exception)


def test_preflight_says_that_credentials_are_missing(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path))

    def refuse(*arguments, **options):
        raise NoCredentialsError

    monkeypatch.setattr(MemoryFileSystem, "pipe_file", refuse)
    found, _ = check_storage(tiny(), workplace("memory://runs") / "tiny", RuntimeFacts(), ())
    (failure,) = [finding.failure for finding in found if finding.failure]
    assert "memory://runs/tiny cannot be written" in failure
    assert "Unable to locate credentials" in failure
    assert not list(tmp_path.iterdir())


def test_preflight_probes_the_url_itself(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path))
    found, _ = check_storage(tiny(), workplace("memory://runs") / "tiny", RuntimeFacts(), ())
    assert [(f.measured, f.failure) for f in found] == [("memory://runs/tiny: written and read by the driver", "")]
    assert not [name for name in MemoryFileSystem.store if "preflight" in name]


def test_a_node_without_the_package_of_the_store_says_what_to_install():
    answer = answer_probe(Probe("nonce", ("nosuchstore://bucket/runs",), writes=False))
    assert "pip install 'minichatgpt[s3]'" in answer.problems["nosuchstore://bucket/runs"]
