"""Head and worker with the very command lines of compose.yaml, on two nodes in network namespaces: their health checks
pass, and Prometheus finds them with the very configuration that Compose gives it.

No container is involved; the name `head` is its address here.
"""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

DOCKER = Path(__file__).parents[3] / "deploy" / "docker"
ASK = """
import sys, urllib.error, urllib.request
url, token = sys.argv[1:]
request = urllib.request.Request(url, headers={"Authorization": f"Bearer {token}"} if token else {})
try:
    print(urllib.request.urlopen(request, timeout=30).status)
except urllib.error.HTTPError as error:
    print(error.code)
"""

pytestmark = [pytest.mark.slow, pytest.mark.ray]


def options(service, head):
    """Of `ray start`, with the defaults of the variables."""
    words = [re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", word) for word in service["command"]]
    assert words[:2] == ["ray", "start"]
    return [word.replace("=head:", f"={head}:") for word in words[2:] if word != "--block"]


def printed(machine, *words):
    asked = machine.inside(*words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    return asked.communicate(timeout=120)[0], asked.returncode


@pytest.fixture
def nodes(machines):
    """Head and worker, up."""
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text(encoding="utf-8"))["services"]
    address = machines.head.address
    for machine, name in ((machines.head, "head"), (machines.other, "worker")):
        machine.start(
            machines.poll, *options(services[name], address), "--temp-dir", str(machines.folder / name[0])
        )  # fmt: skip
    return machines, services


def test_compose_nodes_are_healthy_and_prometheus_finds_them_with_their_token(nodes, tmp_path):
    if missing := [program for program in ("wget", "prometheus", "promtool") if shutil.which(program) is None]:
        pytest.skip(f"not installed: {', '.join(missing)}")
    machines, services = nodes
    head, worker, token = machines.head, machines.other, machines.head.environment["RAY_AUTH_TOKEN"]
    for machine, service in ((head, services["head"]), (worker, services["worker"])):
        check = service["healthcheck"]["test"][1:]
        machines.poll(lambda check=check, machine=machine: printed(machine, *check)[1] == 0, what=" ".join(check))

    text = (DOCKER / "prometheus.yml").read_text(encoding="utf-8")
    (url,) = re.findall(r"http://head\S+", text)
    url = url.replace("//head:", f"//{head.address}:")
    assert printed(worker, sys.executable, "-c", ASK, url, "")[0] == "401\n"
    assert printed(worker, sys.executable, "-c", ASK, url, token)[0] == "200\n"

    for name, secret in (("ray_token", token), ("read_token", "r" * 64)):
        (tmp_path / name).write_text(secret)
    text = text.replace("//head:", f"//{head.address}:").replace("/run/secrets/", f"{tmp_path}/")
    text = text.replace("/etc/prometheus/rules", str(DOCKER.parent / "prometheus" / "rules"))
    (tmp_path / "prometheus.yml").write_text(text)
    words = [f"--config.file={tmp_path}/prometheus.yml", f"--storage.tsdb.path={tmp_path}/data"]
    with (tmp_path / "log").open("wb") as log:
        prometheus = head.inside("prometheus", *words, "--web.listen-address=127.0.0.1:9090", stdout=log, stderr=log)

    def seen():
        assert prometheus.poll() is None, (tmp_path / "log").read_text()
        query = ["promtool", "query", "instant", "http://127.0.0.1:9090", 'up{job="ray"} == 1']
        found = set(re.findall(r'instance="([^"]+)"', printed(head, *query)[0]))
        return {f"{head.address}:8080", f"{worker.address}:8080"} <= found

    machines.poll(seen, what="Prometheus scrapes both nodes")
