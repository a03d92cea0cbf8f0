"""The control channel with the very configuration and secrets of each overlay, asked as in its cluster."""

import base64
import tomllib

import httpx2
import pytest
from prometheus_client import CollectorRegistry, Gauge

from common.config_file import parse_config
from deploy.control.run_controls import RunControls
from deploy.control.server import serve_control
from deploy.stop_signal import StopSignal

POD_ADDRESS = "127.0.0.2"
"""An address of this machine by which nobody is known beforehand, as a pod's: every one of 127/8 is bound on Linux."""


@pytest.fixture(params=["base", "overlays/cpu-demo", "overlays/gpu"])
def pod(request, built, tmp_path):
    """Asks a run, served as in its pod, at the pod's address; and the monitor that scrapes it, with its token."""
    manifests = {(manifest["kind"], manifest["metadata"]["name"]): manifest for manifest in built(request.param)}
    text = manifests["ConfigMap", "minichatgpt-config"]["data"]["run.toml"]
    control = parse_config(tomllib.loads(text), where="run.toml").control.model_copy(update={"port": 0})

    def secret(name, key):
        return base64.b64decode(manifests["Secret", name]["data"][key]).decode()

    head = manifests["RayJob", "minichatgpt"]["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
    environ = {}
    for variable in head["containers"][0]["env"]:
        if "valueFrom" in variable:
            reference = variable["valueFrom"]["secretKeyRef"]
            environ[variable["name"]] = secret(reference["name"], reference["key"])
    (endpoint,) = manifests["PodMonitor", "minichatgpt-run"]["spec"]["podMetricsEndpoints"]
    credentials = endpoint["authorization"]["credentials"]
    registry = CollectorRegistry()
    Gauge("minichatgpt_step", "Updates done.", registry=registry).set(3)
    folder = tmp_path / "run"
    folder.mkdir()
    controls = RunControls("run", StopSignal())
    with (
        serve_control(control, controls, folder, registry=registry, environ=environ) as url,
        httpx2.Client(trust_env=False, timeout=30) as client,
    ):
        port = url.rpartition(":")[2]

        def ask(method, path, *, token=None, host=f"{POD_ADDRESS}:{port}"):
            headers = {"Host": host} | ({} if token is None else {"Authorization": f"Bearer {token}"})
            return client.request(method, f"http://{POD_ADDRESS}:{port}{path}", headers=headers)

        yield ask, endpoint, secret(credentials["name"], credentials["key"]), environ


def test_prometheus_scrapes_the_pod_with_the_token_of_its_monitor(pod):
    ask, endpoint, token, _ = pod
    answer = ask("GET", endpoint["path"], token=token)
    assert answer.status_code == 200
    assert 'minichatgpt_step{run="run"} 3.0' in answer.text


def test_without_a_token_nobody_reads_and_the_token_of_prometheus_does_not_steer(pod):
    ask, endpoint, token, _ = pod
    assert ask("GET", endpoint["path"]).status_code == 401
    assert ask("GET", "/v1/run").status_code == 401
    assert ask("GET", endpoint["path"], token="0" * 64).status_code == 401
    assert ask("POST", "/v1/run/stop", token=token).status_code == 403
    assert ask("GET", "/healthz").status_code == 200


def test_other_pods_ask_by_every_name_of_the_service_and_by_no_other(pod):
    ask, _, token, environ = pod
    for name in ("minichatgpt-control", "minichatgpt-control.minichatgpt.svc.cluster.local"):
        assert ask("GET", "/metrics", token=token, host=f"{name}:9464").status_code == 200
        assert ask("GET", "/metrics", host=f"{name}:9464").status_code == 401
    assert ask("GET", "/metrics", token=token, host="evil.example.org:9464").status_code == 421
    steering = ask("POST", "/v1/run/pause", token=environ["MINICHATGPT_CONTROL_TOKEN"], host="minichatgpt-control:9464")
    assert steering.status_code not in (401, 403, 421)
