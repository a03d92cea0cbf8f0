"""What a run is as a Ray job, before anybody is asked to run it."""

import shutil
import subprocess
import zipfile

import pytest

from common.config_file import load_config
from common.errors import ConfigError
from deploy.jobs.node_python import PYTHON
from deploy.jobs.submission import make_submission


def submission(config, folder, *, runs="/shared/my runs", **changes):
    return make_submission(config, runs, folder, **({"wheel": None, "again": (), "insecure": False} | changes))


def test_the_resolved_configuration_and_what_finds_python_are_all_that_travels(tiny, tmp_path):
    config = tiny("name=mine", "ppo.clip_eps=0.3")
    made = submission(config, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["find_python.sh", "mine.toml"]
    assert load_config(tmp_path / "mine.toml") == config
    assert made.runtime_env["working_dir"] == str(tmp_path)
    assert made.name == "mine"


def test_the_entry_point_is_our_run_and_takes_the_signals(tiny, tmp_path):
    made = submission(tiny(), tmp_path, again=("ppo", "evaluate"), insecure=True)
    assert made.entrypoint.endswith(
        '; exec "$(sh find_python.sh $PPID)" -m deploy run tiny.toml --address auto'
        " --runs '/shared/my runs' --again ppo --again evaluate --insecure"
    )
    assert "--insecure" not in submission(tiny(), tmp_path).entrypoint


def test_a_job_that_is_stopped_has_longer_than_its_update_may_take(tiny, tmp_path):
    made = submission(tiny("stop_timeout_s=100.5"), tmp_path)
    assert int(made.runtime_env["env_vars"]["RAY_JOB_STOP_WAIT_TIME_S"]) > 100.5


def test_without_a_raylet_above_it_the_entry_point_takes_the_python_of_the_path(tiny, tmp_path):
    submission(tiny(), tmp_path)
    done = subprocess.run(["sh", "-c", f'echo "{PYTHON}"'], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == shutil.which("python3")


def test_a_wheel_is_unpacked_beside_the_configuration(tiny, tmp_path):
    wheel, folder = tmp_path / "minichatgpt-0.1.0-py3-none-any.whl", tmp_path / "folder"
    folder.mkdir()
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("deploy/jobs/node_python.py", "its own")
    submission(tiny(), folder, wheel=wheel)
    assert (folder / "deploy/jobs/node_python.py").read_text() == "its own"
    assert (folder / "tiny.toml").is_file()


def test_what_is_no_wheel_of_ours_is_refused(tiny, tmp_path):
    other, none = tmp_path / "other.whl", tmp_path / "none.whl"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("other/__init__.py", "")
    none.write_text("no archive")
    for wheel, reason in (
        (other, "is no wheel of minichatgpt"),
        (none, "cannot be read"),
        (tmp_path / "x.whl", "read"),
    ):
        with pytest.raises(ConfigError, match=f"{reason}.* `pip wheel"):
            submission(tiny(), tmp_path, wheel=wheel)


def test_a_place_that_is_relative_to_nobody_knows_what_is_refused(tiny, tmp_path):
    with pytest.raises(ConfigError, match=r"--runs runs: relative to what\?.* s3://bucket/runs"):
        submission(tiny(), tmp_path, runs="runs")
    assert "s3://b/runs" in submission(tiny(), tmp_path, runs="s3://b/runs").entrypoint
