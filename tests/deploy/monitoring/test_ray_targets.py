"""A run on a Ray cluster with its dashboard: Prometheus finds nodes by Ray's discovery file, and the run by ours."""

import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from deploy.dashboards.__main__ import DASHBOARDS

pytestmark = [pytest.mark.slow, pytest.mark.ray]

HEAD = """
import sys
from deploy.on_ray.environment import protect_local_cluster
protect_local_cluster()
import ray
ray.init(address="local", num_cpus=4, include_dashboard=True, dashboard_port=0, _temp_dir=sys.argv[1])
print("head at", ray.get_runtime_context().gcs_address, flush=True)
sys.stdin.read()
ray.shutdown()
"""
"""A head that lives until its standard input is closed."""


@pytest.fixture(scope="module")
def head():
    """A cluster of our own that serves metrics: its folder, and its address."""
    folder = Path(tempfile.mkdtemp(prefix="ray-"))  # short: sockets lie in it
    command = [sys.executable, "-c", HEAD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        said = next((line for line in process.stdout if line.startswith("head at ")), "")
        assert said, "the head has not started"
        yield folder, said.split()[-1]
        process.stdin.close()
        process.wait(60)
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def watched(head, watching, running, until):
    folder, address = head
    watched = watching(ray_folder=folder)
    running(watched.runs, "--address", address, "--set", "ppo.updates=100000", "--set", "ppo.checkpoint_every=5")
    until(lambda: watched.query("minichatgpt_step > 5"), "Prometheus sees the run update", 240)
    return watched


def test_prometheus_finds_the_nodes_by_the_file_that_ray_writes(watched):
    targets = watched.ask("targets", state="active")["activeTargets"]
    jobs = {job: [t for t in targets if t["labels"]["job"] == job] for job in ("ray", "minichatgpt")}
    assert len(jobs["minichatgpt"]) == 1
    assert jobs["ray"]
    assert [target["health"] for target in jobs["ray"]].count("up") >= 1, jobs["ray"]


def test_panels_of_nodes_and_of_members_have_data(watched, until):
    workers = next(dashboard for dashboard in DASHBOARDS if dashboard.title == "Workers")
    for query in (query for row in workers.rows for panel in row.panels for query in panel.queries):
        if "minichatgpt_autoscaler_" in query.expr:
            continue  # it is off
        expr = re.sub(r"\$__rate_interval", "30s", query.expr.replace("$run", "tiny"))
        until(lambda expr=expr: watched.query(expr), f"{expr} has data", 240)


def test_every_process_has_its_series(watched, until):
    """Members tell of their memory with their signs of life."""
    wanted = {("rollout", "worker-0"), ("rollout", "worker-1"), ("reward", "replica-0"), ("learner", "learner"),
              ("driver", "driver")}  # fmt: skip

    def shown():
        return {(labels["role"], labels["slot"]) for labels, _ in watched.query("minichatgpt_memory_bytes > 1e6")}

    until(lambda: shown() == wanted, f"memory of {wanted}", 240)
