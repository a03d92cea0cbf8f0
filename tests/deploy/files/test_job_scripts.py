"""Scripts of the image and of the RayJob, with a `minichatgpt` that ends as it is told."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

from deploy.jobs.node_python import PYTHON
from deploy.jobs.submission import make_submission

ROOT = Path(__file__).parents[3]
SHARED = ROOT / "deploy" / "kubernetes" / "shared"
ENTRYPOINT = ROOT / "deploy" / "docker" / "minichatgpt-entrypoint"
DRIVER = """#!/bin/bash
trap 'sleep 0.3; echo checkpoint >>"$TOLD"; exit 143' TERM
echo "$@" >"$TOLD"
[ -n "${CODE:-}" ] && exit "$CODE"
while :; do sleep 0.05; done
"""


@pytest.fixture
def job(tmp_path):
    """Starts run-job or stop-job with a driver that leaves what it was told in a file."""
    (tmp_path / "bin").mkdir()
    fake = tmp_path / "bin" / "minichatgpt"
    fake.write_text(DRIVER)
    fake.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "TOLD": str(tmp_path / "told")}
    environment["MINICHATGPT_DRIVERS"] = str(tmp_path / "drivers")
    started = []

    def start(*command, **more):
        words = ["bash", SHARED / command[0]] if command[0] in ("run-job", "stop-job") else command
        process = subprocess.Popen(words, env=environment | more, cwd=tmp_path, stdout=subprocess.PIPE)
        started.append(process)
        return process

    yield start, tmp_path
    for process in started:
        process.kill()
        process.communicate(timeout=30)


@pytest.mark.parametrize(("code", "seen"), [(0, 0), (1, 1), (3, 0), (4, 0), (143, 143)])
def test_only_what_shall_be_tried_again_is_a_failure(job, code, seen):
    start, _ = job
    assert start("run-job", CODE=str(code)).wait(timeout=60) == seen
    assert start("stop-job").wait(timeout=60) == 0, "the file of a driver that has ended holds nobody up"


def test_the_job_runs_the_configuration_that_is_mounted(job):
    start, folder = job
    start("run-job", CODE="0").wait(timeout=60)
    assert (folder / "told").read_text().strip() == "run /etc/minichatgpt/run.toml --address auto --runs /runs"


def test_the_words_of_the_job_are_words_of_the_command_line():
    import typer.main

    from deploy.cli import app

    command = typer.main.get_command(app)
    context = command.commands["run"].make_context(
        "run", ["/etc/minichatgpt/run.toml", "--address", "auto", "--runs", "/runs"]
    )
    assert context.params["runs"] == "/runs"


def test_a_signal_reaches_the_driver_and_its_checkpoint_is_waited_for(job, until_there):
    start, folder = job
    process = start("run-job")
    until_there(folder / "drivers" / "run")
    until_there(folder / "told")
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 143
    assert (folder / "told").read_text().splitlines()[-1] == "checkpoint"


def test_before_the_pod_stops_the_driver_writes_its_checkpoint(job, until_there):
    start, folder = job
    running = start("run-job")
    until_there(folder / "drivers" / "run")
    until_there(folder / "told")
    assert start("stop-job").wait(timeout=60) == 0
    assert (folder / "told").read_text().splitlines()[-1] == "checkpoint"
    assert running.wait(timeout=60) == 143


def launched(tiny, folder, name):
    """The entry point of such a job, whose Python is the driver of these tests."""
    (folder / name).mkdir()
    made = make_submission(tiny(f"name={name}"), "/runs", folder / name, wheel=None, again=(), insecure=False)
    assert PYTHON in made.entrypoint
    return made.entrypoint.replace(PYTHON, str(folder / "bin" / "minichatgpt"))


def test_before_the_pod_stops_runs_that_were_launched_write_their_checkpoints_too(job, until_there, tiny):
    start, folder = job
    names = ("tiny", "a.b")
    running = [start("sh", "-c", launched(tiny, folder, name), TOLD=str(folder / f"told-{name}")) for name in names]
    for name in names:
        until_there(folder / f"told-{name}")
    assert start("stop-job").wait(timeout=60) == 0
    for name, process in zip(names, running, strict=True):
        assert (folder / f"told-{name}").read_text().splitlines()[-1] == "checkpoint"
        assert process.wait(timeout=60) == 143
        assert int((folder / "drivers" / name).read_text()) == process.pid


def test_a_job_leaves_nothing_where_no_folder_for_drivers_is_named(job, tiny):
    start, folder = job
    assert start("sh", "-c", launched(tiny, folder, "tiny"), CODE="0", MINICHATGPT_DRIVERS="").wait(timeout=60) == 0
    assert "run tiny.toml --address auto" in (folder / "told").read_text()
    assert not (folder / "drivers").exists()


def test_a_process_that_has_the_number_of_an_ended_driver_is_left_alone(job, until_there, tiny):
    start, folder = job
    other = start("sh", "-c", launched(tiny, folder, "tiny"))
    until_there(folder / "told")
    written = folder / "drivers" / "tiny"
    for name, text in (("iny", written.read_text()), ("gone", "999999999"), ("empty", ""), ("all", "-1"), ("we", "0")):
        (folder / "drivers" / name).write_text(text)
    written.unlink()
    assert start("stop-job").wait(timeout=60) == 0
    assert other.poll() is None


def test_a_pod_without_a_driver_stops_at_once(job):
    start, _ = job
    assert start("stop-job").wait(timeout=60) == 0


def test_the_entry_point_puts_secrets_into_the_environment_and_becomes_the_command(tmp_path):
    (tmp_path / "token").write_text("s" * 64)
    environment = {"PATH": os.environ["PATH"], "MINICHATGPT_READ_TOKEN_FILE": str(tmp_path / "token")}
    words = ["sh", "-c", 'echo "$MINICHATGPT_READ_TOKEN" "${MINICHATGPT_CONTROL_TOKEN:-none}" "$1"', "sh", "two words"]
    done = subprocess.run([ENTRYPOINT, *words], env=environment, capture_output=True, text=True, timeout=60)
    assert done.stdout == f"{'s' * 64} none two words\n"


def test_the_entry_point_names_the_secret_that_cannot_be_read(tmp_path):
    environment = {"PATH": os.environ["PATH"], "MINICHATGPT_CONTROL_TOKEN_FILE": str(tmp_path / "nothing")}
    done = subprocess.run([ENTRYPOINT, "true"], env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"names {tmp_path / 'nothing'}, which cannot be read; run deploy/docker/make-secrets" in done.stderr
