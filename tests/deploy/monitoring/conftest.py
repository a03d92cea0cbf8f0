"""A real tiny run, a real Prometheus that finds it by itself, a real Alertmanager, and a webhook that it calls."""

import json
import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx2
import pytest

from deploy.monitoring.watch_cli import PACKAGE, write_configuration

ROOT = Path(__file__).parents[3]
NO_ANSWER = 'expr: up{job="minichatgpt"} == 0\n        for: '


@pytest.fixture(scope="session")
def tool():
    """Path of a program; skips the test where it is not installed."""

    def find(name):
        path = shutil.which(name)
        if path is None:
            pytest.skip(f"{name} is not installed: apt-get install prometheus prometheus-alertmanager")
        return path

    return find


def wait_until(condition, what, deadline_s=120.0):
    """Wait until something holds, with an end; returns what it is."""
    end = time.monotonic() + deadline_s
    while not (found := condition()):
        assert time.monotonic() < end, f"{what}: not within {deadline_s:.0f} s"
        time.sleep(0.2)
    return found


@pytest.fixture(scope="session")
def until():
    """Waits until something holds, with an end."""
    return wait_until


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return listening.getsockname()[1]


@contextmanager
def program(command, log, **how):
    """A process of ours while the block runs."""
    with open(log, "ab") as output, subprocess.Popen(command, stdout=output, stderr=output, **how) as process:
        try:
            yield process
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()


@contextmanager
def webhook():
    """A server that keeps what it is sent: URL and messages."""
    messages = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self):
            messages.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *about):
            """Nothing on the terminal."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Receiver)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/alerts", messages
    finally:
        server.shutdown()
        server.server_close()
        thread.join(10)


def change(path, changes):
    """Replace what the file surely has."""
    text = path.read_text(encoding="utf-8")
    for old, new in changes.items():
        assert old in text, f"{path} has lost {old}"
        text = text.replace(old, new)
    path.write_text(text, encoding="utf-8")


@dataclass
class Watched:
    """Programs that watch the runs of a folder."""

    runs: Path
    url: str
    """Of Prometheus."""
    client: httpx2.Client
    messages: list = field(default_factory=list)
    """That came to the webhook."""

    def ask(self, path, **parameters):
        """What Prometheus' API answers."""
        answer = self.client.get(f"{self.url}/api/v1/{path}", params=parameters).json()
        assert answer["status"] == "success", f"{parameters}: {answer}"
        return answer["data"]

    def query(self, expr):
        """Series and values of an instant query, without those that are NaN."""
        found = self.ask("query", query=expr)["result"]
        return [(each["metric"], float(each["value"][1])) for each in found if each["value"][1] != "NaN"]

    def is_ready(self):
        try:
            return self.client.get(f"{self.url}/-/ready").status_code == 200
        except httpx2.TransportError:
            return False


@pytest.fixture(scope="module")
def watching(tool, tmp_path_factory):
    """Starts the programs that watch a folder, as `minichatgpt watch` does, but sooner: all look every second."""
    with ExitStack() as stack:

        def start(*, ray_folder=Path("/nowhere"), token=None):
            folder = tmp_path_factory.mktemp("watch")
            runs, port, alert_port = folder / "runs", free_port(), free_port()
            (runs / ".targets").mkdir(parents=True)
            where = f"127.0.0.1:{alert_port}"
            write_configuration(folder, targets=runs / ".targets", ray_folder=ray_folder, port=port, alertmanager=where)
            settings, alerting = folder / "prometheus.yml", folder / "alertmanager.yml"
            change(settings, {"_interval: 5s": "_interval: 1s", "_interval: 15s": "_interval: 1s",
                              "_interval: 10s": "_interval: 1s"})  # fmt: skip
            shutil.copytree(PACKAGE / "prometheus" / "rules", folder / "rules")
            change(settings, {f"{PACKAGE / 'prometheus' / 'rules'}/*.yml": f"{folder / 'rules'}/*.yml"})
            change(folder / "rules" / "alerts.yml", {NO_ANSWER + "1m": NO_ANSWER + "20s"})
            if token is not None:
                (folder / "token").write_text(token, encoding="ascii")
                change(settings, {"# authorization:": "authorization:", "#   credentials_file:": "  credentials_file:",
                                  "/etc/prometheus/minichatgpt.token": str(folder / "token")})  # fmt: skip
            shutil.copy(PACKAGE / "prometheus" / "alertmanager.yml", alerting)
            url, messages = stack.enter_context(webhook())
            change(alerting, {"http://127.0.0.1:9095/alerts": url})
            manager = [tool("prometheus-alertmanager"), f"--config.file={alerting}",
                       f"--storage.path={folder / 'alerts'}", f"--web.listen-address=127.0.0.1:{alert_port}",
                       "--cluster.listen-address="]  # fmt: skip
            server = [tool("prometheus"), f"--config.file={settings}", f"--storage.tsdb.path={folder / 'data'}",
                      f"--web.listen-address=127.0.0.1:{port}"]  # fmt: skip
            stack.enter_context(program(manager, folder / "alertmanager.log"))
            stack.enter_context(program(server, folder / "prometheus.log"))
            client = stack.enter_context(httpx2.Client(trust_env=False, timeout=30))
            watched = Watched(runs, f"http://127.0.0.1:{port}", client, messages)
            wait_until(watched.is_ready, "Prometheus is ready")
            return watched

        yield start


@pytest.fixture(scope="module")
def running():
    """Starts a run of `tiny` in a process of its own, which ends with the tests: extra arguments, environment."""
    with ExitStack() as stack:

        def start(runs, *arguments, **environment):
            command = [sys.executable, "-m", "deploy", "run", "tiny", "--runs", str(runs), *arguments]
            how = {"cwd": ROOT, "env": {**os.environ, **environment}}
            return stack.enter_context(program(command, runs / "run.log", **how))

        yield start
