"""A real Prometheus and a real Alertmanager watch a real run: found by itself, every rule and every panel has data."""

import json
import re
import socket
import subprocess
import sys
from pathlib import Path

import httpx2
import pytest
import yaml
from prometheus_client import CollectorRegistry, Gauge

from common.control_config import ControlConfig
from deploy.control.run_controls import RunControls
from deploy.control.server import serve_control
from deploy.monitoring.watch_cli import PACKAGE
from deploy.run_folder.address import read_address
from deploy.stop_signal import StopSignal

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
ENDLESS = ["ppo.updates=100000", "ppo.checkpoint_every=5", "ppo.probe_every=2", "evaluate.every_updates=5",
           "ppo.kl.type=adaptive", "ppo.samples_per_prompt=2", "ppo.max_staleness=1"]  # fmt: skip
WITHOUT_DATA = {
    "ray_": "Ray's own metrics; this run is in one process",
    "minichatgpt_autoscaler_": "this run has none",
    'memory_bytes{run=~"$run", role="reward"': "in one process the driver's memory is all there is",
}
"""Part of a query, and why it may have no data here."""


@pytest.fixture(scope="module")
def watched(watching, running, until):
    """A run of `tiny` that Prometheus has seen update, evaluate and save."""
    watched = watching()
    changes = [word for change in ENDLESS for word in ("--set", change)]
    watched.process = running(watched.runs, "--local", *changes)
    until(lambda: watched.query("minichatgpt_evaluation_step > 10"), "Prometheus sees the run evaluate", 240)
    return watched


def queries():
    """Panel and PromQL of every dashboard."""
    for file in sorted((PACKAGE / "grafana" / "dashboards").glob("*.json")):
        for panel in json.loads(file.read_text(encoding="utf-8"))["panels"]:
            for target in panel.get("targets", []):
                yield f"{file.stem}, {panel['title']}", target["expr"]


def filled(expr):
    """Variables as Grafana would fill them."""
    return re.sub(r"\$__(rate_)?interval", "30s", expr.replace("$run", "tiny"))


def test_watch_becomes_prometheus(tool, tmp_path, until):
    tool("prometheus")
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
    (tmp_path / "runs").mkdir()
    command = [sys.executable, "-m", "deploy", "watch", "--port", str(port), "--runs", str(tmp_path / "runs")]
    with (
        open(tmp_path / "log", "wb") as log,
        subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log) as process,
        httpx2.Client(trust_env=False) as client,
    ):
        try:

            def is_ready():
                assert process.poll() is None, (tmp_path / "log").read_text(encoding="utf-8")
                try:
                    return client.get(f"http://127.0.0.1:{port}/-/ready").status_code == 200
                except httpx2.TransportError:
                    return False

            until(is_ready, "Prometheus is ready")
            assert Path(f"/proc/{process.pid}/cmdline").read_bytes().startswith(b"prometheus\0")
        finally:
            process.terminate()
    assert "Grafana: GF_PATHS_PROVISIONING=" in (tmp_path / "log").read_text(encoding="utf-8")


def test_prometheus_finds_the_run_by_its_file(watched):
    (target,) = watched.ask("targets", state="active")["activeTargets"]
    assert target["labels"] == {"run": "tiny", "job": "minichatgpt", "instance": target["labels"]["instance"]}
    assert target["health"] == "up", target["lastError"]


def test_what_it_scrapes_is_as_promtool_wants_it(watched, tool):
    url = read_address(watched.runs / "tiny").control_url
    scraped = httpx2.get(f"{url}/metrics", trust_env=False).content
    checked = subprocess.run([tool("promtool"), "check", "metrics"], input=scraped, capture_output=True, check=False)
    assert (checked.returncode, checked.stdout + checked.stderr) == (0, b"")


def test_every_rule_can_be_evaluated(watched, until):
    def rules():
        return [rule for group in watched.ask("rules")["groups"] for rule in group["rules"]]

    until(lambda: all(rule["health"] != "unknown" for rule in rules()), "all rules are evaluated")
    assert {rule["name"]: rule["lastError"] for rule in rules() if rule["health"] != "ok"} == {}


def test_every_recording_rule_has_data(watched, until):
    file = yaml.safe_load((PACKAGE / "prometheus" / "rules" / "recording.yml").read_text(encoding="utf-8"))
    for name in [rule["record"] for group in file["groups"] for rule in group["rules"]]:
        until(lambda name=name: watched.query(name), f"{name} has data")


def test_every_query_of_every_dashboard_has_data(watched, until):
    left = [each for each in queries() if not any(part in each[1] for part in WITHOUT_DATA)]

    def is_done():
        left[:] = [(place, expr) for place, expr in left if not watched.query(filled(expr))]
        return not left

    try:
        until(is_done, "data", 90)
    except AssertionError:
        pytest.fail("\n".join(f"no data: {place}: {expr}" for place, expr in left))


def test_prometheus_takes_the_queries_of_annotations_and_of_panels_without_data(watched):
    for _, expr in queries():
        watched.query(filled(expr))
    for file in (PACKAGE / "grafana" / "dashboards").glob("*.json"):
        for annotation in json.loads(file.read_text(encoding="utf-8"))["annotations"]["list"]:
            watched.query(filled(annotation["expr"]))


def test_a_sound_run_sets_off_no_critical_alert(watched):
    assert watched.query('ALERTS{severity="critical"}') == []


@pytest.mark.parametrize(("token", "says"), [("r" * 32, ""), ("x" * 32, "401 Unauthorized")])
def test_a_run_that_asks_for_a_token_is_scraped_with_the_one_for_reading(watching, until, token, says):
    watched = watching(token=token)
    config = ControlConfig(host="127.0.0.2", token_env="STEER", read_token_env="READ")
    environ = {"STEER": "s" * 32, "READ": "r" * 32}
    registry, folder = CollectorRegistry(), watched.runs / "guarded"
    Gauge("minichatgpt_step", "Any metric.", registry=registry).set(7)
    folder.mkdir()
    with serve_control(config, RunControls("guarded", StopSignal()), folder, registry=registry, environ=environ):

        def scraped():
            targets = watched.ask("targets", state="active")["activeTargets"]
            return [target for target in targets if target["health"] != "unknown"]

        (target,) = until(scraped, "the target is scraped")
        assert says in target["lastError"]
        assert target["health"] == ("down" if says else "up")


def test_a_run_that_is_killed_is_reported_by_webhook(watched, until):
    watched.process.kill()

    def reported():
        alerts = [alert for message in watched.messages for alert in message["alerts"]]
        return [alert for alert in alerts if alert["labels"]["alertname"] == "ScrapeDown"]

    alert = until(reported, "the webhook is told of ScrapeDown", 180)[0]
    assert alert["status"] == "firing"
    assert alert["labels"]["run"] == "tiny"
    assert alert["annotations"]["summary"] == "tiny does not answer"
    assert "minichatgpt status tiny" in alert["annotations"]["runbook"]
