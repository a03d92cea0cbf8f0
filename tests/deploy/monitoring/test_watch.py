"""How Prometheus finds runs, and what `minichatgpt watch` writes and starts."""

import json
import os
import socket
import subprocess

import pytest
import yaml
from prometheus_client import CollectorRegistry
from typer.testing import CliRunner

from common.control_config import ControlConfig
from common.errors import ConfigError, ControlError, DataError
from deploy.cli import app
from deploy.control.run_controls import RunControls
from deploy.control.server import serve_control
from deploy.monitoring.scrape_target import scrape_target, target_of
from deploy.monitoring.watch_cli import PACKAGE
from deploy.stop_signal import StopSignal


def watch(*arguments):
    return CliRunner().invoke(app, ["watch", *arguments])


@pytest.fixture
def written(tmp_path):
    """The folder that `watch --no-start` has written."""
    (tmp_path / "runs").mkdir()
    done = watch("--no-start", "--runs", str(tmp_path / "runs"), "--port", "9911", "--ray-folder", "/some/ray")
    assert done.exit_code == 0, done.output
    return tmp_path / "runs" / ".watch"


def test_a_run_tells_prometheus_where_it_is_while_it_lasts(tmp_path):
    folder = tmp_path / "runs" / "mine"
    folder.mkdir(parents=True)
    controls = RunControls("mine", StopSignal())
    with serve_control(ControlConfig(), controls, folder, registry=CollectorRegistry()) as url:
        (group,) = json.loads((tmp_path / "runs" / ".targets" / "mine.json").read_text(encoding="utf-8"))
        assert group == {"targets": [url.removeprefix("http://")], "labels": {"run": "mine"}}
    assert list((tmp_path / "runs" / ".targets").iterdir()) == []


def test_two_runs_do_not_take_each_others_place(tmp_path):
    with scrape_target(tmp_path / "one", "127.0.0.1", 1):
        with scrape_target(tmp_path / "two", "::1", 2):
            there = {path.stem: json.loads(path.read_bytes()) for path in (tmp_path / ".targets").iterdir()}
        assert [path.name for path in (tmp_path / ".targets").iterdir()] == ["one.json"]
    assert {name: groups[0]["targets"] for name, groups in there.items()} == {
        "one": ["127.0.0.1:1"],
        "two": ["[::1]:2"],
    }


@pytest.mark.parametrize("host", ["0.0.0.0", "::"])
def test_a_run_that_listens_on_every_address_is_found_by_its_machines_name(host):
    assert target_of(host, 9464) == f"{socket.gethostname()}:9464"


def test_a_target_that_cannot_be_written_is_an_error_that_names_it(tmp_path):
    (tmp_path / ".targets").write_text("no folder", encoding="utf-8")
    with (
        pytest.raises(DataError, match=r"\.targets/mine\.json, which tells Prometheus of the run, cannot be written"),
        scrape_target(tmp_path / "mine", "127.0.0.1", 1),
    ):
        pass


def test_watch_writes_the_paths_of_this_machine(written):
    config = yaml.safe_load((written / "prometheus.yml").read_text(encoding="utf-8"))
    jobs = {job["job_name"]: job["file_sd_configs"][0]["files"] for job in config["scrape_configs"]}
    assert jobs == {
        "minichatgpt": [str(written.parent / ".targets" / "*.json")],
        "ray": ["/some/ray/prom_metrics_service_discovery.json"],
    }
    assert config["rule_files"] == [str(PACKAGE / "prometheus" / "rules" / "*.yml")]
    (source,) = yaml.safe_load((written / "grafana" / "datasources" / "prometheus.yml").read_bytes())["datasources"]
    assert source["url"] == "http://127.0.0.1:9911"
    (provider,) = yaml.safe_load((written / "grafana" / "dashboards" / "minichatgpt.yml").read_bytes())["providers"]
    assert len(list(os.scandir(provider["options"]["path"]))) == 5


def test_watch_gives_prometheus_the_token_of_runs_off_loopback(tmp_path, tool):
    (tmp_path / "runs").mkdir()
    token = tmp_path / "read.token"
    token.write_text("r" * 43 + "\n", encoding="utf-8")
    arguments = ("--no-start", "--runs", str(tmp_path / "runs"), "--token-file")
    assert watch(*arguments, str(token)).exit_code == 0
    path = tmp_path / "runs" / ".watch" / "prometheus.yml"
    ours, ray = yaml.safe_load(path.read_text(encoding="utf-8"))["scrape_configs"]
    assert ours["authorization"] == {"credentials_file": str(token)}
    assert "authorization" not in ray, "Ray is not to see it"
    subprocess.run([tool("promtool"), "check", "config", str(path)], capture_output=True, timeout=60, check=True)
    assert isinstance(watch(*arguments, str(tmp_path / "none")).exception, ControlError)


def test_watch_makes_no_folder_of_runs(tmp_path):
    done = watch("--no-start", "--runs", str(tmp_path / "nope"))
    assert isinstance(done.exception, ConfigError)
    assert f"{tmp_path / 'nope'} is no folder" in str(done.exception)
    assert not (tmp_path / "nope").exists()


def test_watch_says_what_to_install_where_prometheus_is_missing(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "runs").mkdir()
    done = watch("--runs", str(tmp_path / "runs"))
    assert isinstance(done.exception, ConfigError)
    assert "prometheus is not installed here; `apt-get install prometheus` on Debian" in str(done.exception)
    assert (tmp_path / "runs" / ".watch" / "prometheus.yml").is_file()


@pytest.mark.parametrize("file", ["as it is packaged", "as watch writes it"])
def test_promtool_finds_configuration_and_rules_sound(file, tool, written):
    config = {"as it is packaged": PACKAGE / "prometheus", "as watch writes it": written}[file] / "prometheus.yml"
    checked = subprocess.run(
        [tool("promtool"), "check", "config", str(config)], capture_output=True, text=True, timeout=60, check=False
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "2 rule files found" in checked.stdout


def test_amtool_finds_the_example_of_alertmanager_sound(tool):
    example = PACKAGE / "prometheus" / "alertmanager.yml"
    checked = subprocess.run(
        [tool("amtool"), "check-config", str(example)], capture_output=True, timeout=60, check=False
    )
    assert checked.returncode == 0, checked.stderr
