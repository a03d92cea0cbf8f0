"""Two Ray nodes that are machines of their own, as far as Linux can tell, and a run of PPO on both.

Each is a network namespace and a process namespace: nothing but the link leads from one to the other, and the end of
its first process is the end of all of them, as when a machine loses its power. Needs root, `ip` and `unshare`.
"""

import ctypes
import os
import secrets
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

from deploy.control.client import RunClient
from deploy.control.run_status import ScaleRequest, StopRequest
from deploy.control.tokens import read_token
from deploy.run_folder.address import read_address

ROOT = Path(__file__).parents[3]
IN_NAMESPACES = ["unshare", "--net", "--pid", "--fork", "--mount-proc", "--kill-child"]
CLONE_NEWNET = 0x40000000
DEADLINE_S = 300.0
HEAD, OTHER = "10.77.0.1", "10.77.0.2"
"""On a link that only the two can see, so that tests on one machine do not meet."""
PORT, WIRE = 6379, "wire"


FAST_HEART = tuple(
    f"{role}.{setting}"
    for role in ("rollout", "learner")
    for setting in ("heartbeat_every_s=0.5", "heartbeat_timeout_s=5")
)


def can_be_two() -> bool:
    """Whether this process may make namespaces."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "nsenter"))):
        return False
    return subprocess.run([*IN_NAMESPACES, "true"], check=False, capture_output=True).returncode == 0


class Machine:
    """A Ray node in namespaces of its own."""

    def __init__(self, name: str, address: str, folder: Path, environment: dict[str, str]) -> None:
        self.name, self.address, self.folder, self.environment = name, address, folder, environment
        self.process: subprocess.Popen | None = None
        subprocess.run(["ip", "netns", "add", name], check=True)

    def ip(self, *arguments: str) -> None:
        subprocess.run(["ip", "-n", self.name, *arguments], check=True)

    def start(self, poll, *arguments: str) -> None:
        """`ray start`, in a machine that has just been switched on."""
        printed = self.folder / f"{self.name}-{time.monotonic_ns()}.out"
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--node-ip-address", self.address]
        namespaces = [word for word in IN_NAMESPACES if word != "--net"]
        with printed.open("wb") as file:
            self.process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, *namespaces, *ray, *arguments],
                env=self.environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        poll(lambda: "Ray runtime started" in printed.read_text() or self.process.poll() is not None, what="ray start")
        assert self.process.poll() is None, printed.read_text()

    def inside(self, *command: str, **options) -> subprocess.Popen:
        """A command on this machine."""
        (first,) = psutil.Process(self.process.pid).children()
        target = ["nsenter", "--target", str(first.pid), "--net", "--pid", "--mount"]
        return subprocess.Popen([*target, *command], env=self.environment, **options)

    def die(self) -> None:
        """All of its processes at once."""
        if self.process is not None:
            self.process.kill()
            self.process.wait(timeout=60)
            self.process = None

    def remove(self) -> None:
        self.die()
        subprocess.run(["ip", "netns", "delete", self.name], check=True)


class RemoteControls:
    """The control channel of a run on another machine, as `Watched` wants it: asked by a thread that has gone there."""

    def __init__(self, machine: Machine, folder: Path) -> None:
        self._thread = ThreadPoolExecutor(1, initializer=self._enter, initargs=(machine.name,))
        self._client = self._thread.submit(self._connect, folder).result(timeout=60)

    @staticmethod
    def _enter(name: str) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{name}") as namespace:
            assert libc.setns(namespace.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())

    @staticmethod
    def _connect(folder: Path) -> RunClient:
        address = read_address(folder)
        return RunClient(folder, address.pid, address.control_url, read_token(folder))

    def status(self):
        return self._thread.submit(self._client.status).result(timeout=60)

    def scale(self, **sizes):
        return self._thread.submit(self._client.scale, ScaleRequest(**sizes)).result(timeout=60)

    def stop(self):
        return self._thread.submit(self._client.stop, StopRequest(reason="enough")).result(timeout=60)


class TwoMachines:
    """A head, another node, and the link between them."""

    def __init__(self, stack: ExitStack, folder: Path, mode: str, poll) -> None:
        self.poll, self.folder = poll, folder
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        environment |= {"RAY_AUTH_MODE": mode, "PYTHONPATH": str(ROOT), "COLUMNS": "300", "NO_COLOR": "1"}
        environment |= {"RAY_AUTH_TOKEN": secrets.token_hex(32)} if mode == "token" else {}
        # Payloads are small here, and would travel with the answers: as large ones they are lost with their node.
        environment |= {"RAY_max_direct_call_object_size": "1000"}
        self.head, self.other = (
            Machine(f"mc{os.getpid()}-{name}", address, folder, environment)
            for name, address in (("head", HEAD), ("other", OTHER))
        )
        for machine in (self.head, self.other):
            stack.callback(machine.remove)
        self.head.ip("link", "add", "name", WIRE, "type", "veth", "peer", "name", WIRE, "netns", self.other.name)
        for machine in (self.head, self.other):
            machine.ip("address", "add", f"{machine.address}/24", "dev", WIRE)
            machine.ip("link", "set", "lo", "up")
            machine.ip("link", "set", WIRE, "up")

    def start_head(self, resources: str) -> None:
        arguments = ["--head", "--port", str(PORT), "--include-dashboard", "false", "--num-cpus", "2"]
        self.head.start(self.poll, *arguments, "--temp-dir", str(self.folder / "h"), "--resources", resources)

    def start_other(self, resources: str) -> None:
        arguments = ["--address", f"{HEAD}:{PORT}", "--num-cpus", "8", "--temp-dir", str(self.folder / "o")]
        self.other.start(self.poll, *arguments, "--resources", resources)

    def cut(self) -> None:
        """No packet gets through any more."""
        self.other.ip("link", "set", WIRE, "down")

    def mend(self) -> None:
        """The link is as it was."""
        self.other.ip("link", "set", WIRE, "up")

    def drain(self, node: str) -> None:
        """Announce that a node is about to go, as a cloud does before it takes a spot machine away."""
        words = ["drain-node", "--address", f"{HEAD}:{PORT}", "--node-id", node, "--reason-message", "spot"]
        words += ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--deadline-remaining-seconds", "60"]
        assert self.head.inside(sys.executable, "-m", "ray.scripts.scripts", *words).wait(timeout=60) == 0

    def run(self, *changes: str) -> "RunThere":
        """`minichatgpt run tiny` on the head, where learner and replica are; returns once PPO can be asked.

        The learner takes half of the head's CPUs, so that Ray prefers the other node for workers while both have room.
        """
        sets = ["rollout.resources={roll=1}", "rollout.num_cpus=0.25", *FAST_HEART]
        sets += ["learner.resources={head=1}", "learner.num_cpus=1", "reward_service.resources={head=1}", *changes]
        arguments = ["run", "tiny", "--address", f"{HEAD}:{PORT}", "--runs", str(self.folder), "--insecure"]
        printed = self.folder / f"run-{time.monotonic_ns()}.out"
        with printed.open("wb") as file:
            driver = self.head.inside(
                *[sys.executable, "-m", "deploy", *arguments],
                *[word for change in sets for word in ("--set", change)],
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        return RunThere(self, driver, printed)


class RunThere:
    """A run on two machines."""

    def __init__(self, machines: TwoMachines, driver: subprocess.Popen, printed: Path) -> None:
        self.machines, self.driver, self._printed = machines, driver, printed
        self.folder = machines.folder / "tiny"

    def controls(self) -> RemoteControls:
        """Once there is somebody to ask."""

        def is_there() -> bool:
            address = read_address(self.folder)
            return self.driver.poll() is not None or (address is not None and address.control_url is not None)

        self.machines.poll(is_there, what="the control channel")
        assert self.driver.poll() is None, self._printed.read_text()
        return RemoteControls(self.machines.head, self.folder)

    def end(self, code: int) -> str:
        """What it printed, once it has ended with that exit code."""
        ended = self.driver.wait(timeout=DEADLINE_S)
        assert ended == code, self._printed.read_text()
        return self._printed.read_text()


@pytest.fixture
def machines(request, tiny_run, short_folder, poll):
    """Two machines, off, and a run that begins with PPO; the parameter is Ray's mode of authentication."""
    if not can_be_two():
        pytest.skip("needs root, iproute2 and util-linux: makes namespaces of network and processes")
    shutil.copytree(
        tiny_run,
        short_folder / "tiny",
        ignore=shutil.ignore_patterns("checkpoints", "ppo*", "evaluate.json", "*.jsonl"),
    )
    with ExitStack() as stack:
        yield TwoMachines(stack, short_folder, getattr(request, "param", "token"), poll)


@pytest.fixture
def seen(Watched):
    """Sees and steers a run on two machines, once it trains."""

    def look(run: RunThere):
        watched = Watched(run.controls(), run.folder)
        watched.await_step(3)
        return watched

    return look
