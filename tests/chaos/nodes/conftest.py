"""Ray nodes that are machines of their own, as far as Linux can tell, and a run of PPO on them.

Each is a network namespace and a process namespace: nothing but its wire to the head's switch leads from one to the
other, and the end of its first process is the end of all of them, as when a machine loses its power. Needs root, `ip`
and `unshare`.
"""

import ctypes
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

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
SUBNET = "10.77.0"
"""On wires that only these machines can see, so that tests on one machine do not meet; the head is number 1."""
HEAD = f"{SUBNET}.1"
PORT, WIRE = 6379, "wire"
FAST_HEART = tuple(
    f"{role}.{setting}"
    for role in ("rollout", "learner")
    for setting in ("heartbeat_every_s=0.5", "heartbeat_timeout_s=5")
)
CALM_HEART = tuple(f"{role}.heartbeat_timeout_s=60" for role in ("rollout", "reward_service", "learner"))
"""Where many processes start on few cores, and nobody shall be taken for dead."""


def can_be_many() -> bool:
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


class Remote:
    """What a machine can ask of others: work of a thread of ours that has gone there."""

    def __init__(self, machine: Machine) -> None:
        self._thread = ThreadPoolExecutor(1, initializer=self._enter, initargs=(machine.name,))

    @staticmethod
    def _enter(name: str) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        with open(f"/run/netns/{name}") as namespace:
            assert libc.setns(namespace.fileno(), CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())

    def do(self, work: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        return self._thread.submit(work, *arguments, **named).result(timeout=60)


class RemoteControls:
    """The control channel of a run, as `Watched` wants it, asked from a machine."""

    def __init__(self, machine: Machine, client: RunClient) -> None:
        self._remote, self._client = Remote(machine), client

    def status(self):
        return self._remote.do(self._client.status)

    def scale(self, **sizes):
        return self._remote.do(self._client.scale, ScaleRequest(**sizes))

    def pause(self):
        return self._remote.do(self._client.pause)

    def resume(self):
        return self._remote.do(self._client.resume)

    def stop(self):
        return self._remote.do(self._client.stop, StopRequest(reason="enough"))


class Machines:
    """A head, others by name, and the wires between them, which meet in a switch that the head holds."""

    def __init__(self, stack: ExitStack, folder: Path, mode: str, poll, names: Sequence[str]) -> None:
        self.poll, self.folder = poll, folder
        environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
        environment |= {"RAY_AUTH_MODE": mode, "PYTHONPATH": str(ROOT), "COLUMNS": "300", "NO_COLOR": "1"}
        environment |= {"RAY_AUTH_TOKEN": secrets.token_hex(32)} if mode == "token" else {}
        # Payloads are small here, and would travel with the answers: as large ones they are lost with their node.
        environment |= {"RAY_max_direct_call_object_size": "1000"}
        # Always the emptiest node that fits: else Ray fills the driver's own up to a half, in an order that varies.
        environment |= {"RAY_scheduler_spread_threshold": "0"}
        self.by_name = {
            name: Machine(f"mc{os.getpid()}-{name}", f"{SUBNET}.{number}", folder, environment)
            for number, name in enumerate(("head", *names), start=1)
        }
        for machine in self.by_name.values():
            stack.callback(machine.remove)
        self.head.ip("link", "add", "name", WIRE, "type", "bridge")
        for number, machine in enumerate(self.by_name.values()):
            if machine is not self.head:
                port = f"port{number}"
                self.head.ip("link", "add", "name", port, "type", "veth", "peer", "name", WIRE, "netns", machine.name)
                self.head.ip("link", "set", port, "master", WIRE, "up")
            machine.ip("address", "add", f"{machine.address}/24", "dev", WIRE)
            machine.ip("link", "set", "lo", "up")
            machine.ip("link", "set", WIRE, "up")

    @property
    def head(self) -> Machine:
        return self.by_name["head"]

    @property
    def other(self) -> Machine:
        """The first of the others."""
        return list(self.by_name.values())[1]

    def start_head(self, resources: str, *arguments: str, dashboard: bool = False) -> None:
        words = ["--head", "--port", str(PORT), "--include-dashboard", str(dashboard).lower(), "--num-cpus", "2"]
        words += ["--temp-dir", str(self.folder / "h"), "--resources", resources, *arguments]
        self.head.start(self.poll, *words)

    def start_other(self, resources: str, *arguments: str, name: str = "other") -> None:
        words = ["--address", f"{HEAD}:{PORT}", "--num-cpus", "8", "--temp-dir", str(self.folder / name[0])]
        self.by_name[name].start(self.poll, *words, "--resources", resources, *arguments)

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

    def ask(self, machine: Machine, *words: str, code: int = 0) -> str:
        """What `minichatgpt` prints there; it ends with that exit code."""
        printed = self.folder / f"asked-{time.monotonic_ns()}.out"
        with printed.open("wb") as file:
            asked = machine.inside(sys.executable, "-m", "deploy", *words, stdout=file, stderr=subprocess.STDOUT)
            ended = asked.wait(timeout=DEADLINE_S)
        assert ended == code, printed.read_text()
        return printed.read_text()

    def run(self, *changes: str, is_calm: bool = False) -> "RunThere":
        """`minichatgpt run tiny` on the head, where learner and replica are; workers spread over what has `roll`."""
        sets = ["rollout.resources={roll=1}", "rollout.num_cpus=0.25", *(CALM_HEART if is_calm else FAST_HEART)]
        sets += ["learner.resources={head=1}", "reward_service.resources={head=1}", *changes]
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
    """A run on these machines."""

    def __init__(self, machines: Machines, driver: subprocess.Popen, printed: Path) -> None:
        self.machines, self.driver, self._printed = machines, driver, printed
        self.folder = machines.folder / "tiny"

    def controls(self, at: Machine | None = None) -> RemoteControls:
        """Once there is somebody to ask; from a machine, by default the head."""

        def is_there() -> bool:
            address = read_address(self.folder)
            return self.driver.poll() is not None or (address is not None and address.control_url is not None)

        self.machines.poll(is_there, what="the control channel")
        assert self.driver.poll() is None, self._printed.read_text()
        address = read_address(self.folder)
        client = RunClient(self.folder, address.pid, address.control_url, read_token(self.folder))
        return RemoteControls(at or self.machines.head, client)

    def end(self, code: int) -> str:
        """What it printed, once it has ended with that exit code."""
        ended = self.driver.wait(timeout=DEADLINE_S)
        assert ended == code, self._printed.read_text()
        return self._printed.read_text()


@pytest.fixture(scope="session")
def machines_at(tiny_run, poll):
    """Lays out machines, off, and a run in a folder that begins with PPO, while the block lasts."""

    @contextmanager
    def lay_out(folder: Path, *names: str, mode: str = "token"):
        if not can_be_many():
            pytest.skip("needs root, iproute2 and util-linux: makes namespaces of network and processes")
        left_out = shutil.ignore_patterns("checkpoints", "ppo*", "evaluate.json", "*.jsonl")
        shutil.copytree(tiny_run, folder / "tiny", ignore=left_out)
        with ExitStack() as stack:
            yield Machines(stack, folder, mode, poll, names)

    return lay_out


@pytest.fixture
def machines(request, machines_at, short_folder):
    """Two machines; the parameter is Ray's mode of authentication."""
    with machines_at(short_folder, "other", mode=getattr(request, "param", "token")) as two:
        yield two


@pytest.fixture(scope="session", name="Remote")
def _remote():
    """What a machine can ask of others, given the machine."""
    return Remote


@pytest.fixture(scope="session")
def seen(Watched):
    """Sees and steers a run on these machines, from one of them, once it trains."""

    def look(run: RunThere, at: Machine | None = None):
        watched = Watched(run.controls(at), run.folder)
        watched.await_step(3)
        return watched

    return look
