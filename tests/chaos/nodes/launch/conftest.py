"""The head of a Ray cluster in namespaces of its own, its dashboard on, and the command line beside it.

Ray lives in a virtual environment that is not on the PATH, and each mode of authentication has one cluster for all
tests, for it takes long to start.
"""

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import psutil
import pytest

ROOT = Path(__file__).parents[4]
DEADLINE_S = 300.0
IN_NAMESPACES = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
HERE = "10.77.0.1"


class Head:
    """A cluster of one node, which asks for a token or does not."""

    address, gcs = f"http://{HERE}:8265", f"{HERE}:6379"

    def __init__(self, mode: str, folder: Path, stack: ExitStack, poll) -> None:
        self.mode, self.folder, self.poll = mode, folder, poll
        self.name = f"mc{os.getpid()}-{mode}"
        self.token = secrets.token_hex(32)
        self.accepts = ["--insecure"] if mode == "disabled" else []
        subprocess.run(["ip", "netns", "add", self.name], check=True)
        stack.callback(subprocess.run, ["ip", "netns", "delete", self.name], check=True)
        for words in (
            "link set lo up",
            "link add name wire type veth peer name end",
            f"address add {HERE}/24 dev wire",
            "link set wire up",
            "link set end up",
        ):
            subprocess.run(["ip", "-n", self.name, *words.split()], check=True)
        for _ in range(3):  # Ray gives its raylet 30 s, whatever else the machine has to do
            self.process = self._start()
            stack.callback(self._die, self.process)
            poll(lambda: "Ray runtime started" in self.printed() or self.process.poll() is not None, what="ray start")
            if self.process.poll() is None:
                return
        raise AssertionError(self.printed())

    def printed(self) -> str:
        return (self.folder / "head.out").read_text()

    def environment(self, **changes: str | None) -> dict[str, str]:
        """With the PATH of a machine on which Ray is in a virtual environment; None takes a variable away."""
        wanted: dict[str, str | None] = {
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": str(self.folder),
            "PYTHONPATH": str(ROOT),
            "RAY_AUTH_MODE": self.mode,
            "RAY_AUTH_TOKEN": self.token if self.mode == "token" else None,
            "MINICHATGPT_DRIVERS": str(self.folder / "drivers"),
            "COLUMNS": "300",
            "NO_COLOR": "1",
            "HF_HUB_OFFLINE": "1",
        } | changes
        return {name: value for name, value in wanted.items() if value is not None}

    def _start(self) -> subprocess.Popen:
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", "--node-ip-address", HERE]
        ray += ["--port", "6379", "--include-dashboard", "true", "--dashboard-host", HERE, "--num-cpus", "8"]
        with (self.folder / "head.out").open("wb") as file:
            return subprocess.Popen(
                ["ip", "netns", "exec", self.name, *IN_NAMESPACES, *ray, "--temp-dir", str(self.folder / "r")],
                env=self.environment(),
                cwd=self.folder,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    @staticmethod
    def _die(process: subprocess.Popen) -> None:
        process.kill()
        process.wait(timeout=60)

    def inside(self, *command: str) -> None:
        """A command that sees this machine's processes."""
        (first,) = psutil.Process(self.process.pid).children()
        target = ["nsenter", "--target", str(first.pid), "--pid", "--mount"]
        subprocess.run([*target, *command], check=True)

    def begin(self, *words: str, **changes: str | None) -> "Said":
        """`minichatgpt`, as on another machine."""
        file = self.folder / f"said-{time.monotonic_ns()}.out"
        with file.open("wb") as out:
            process = subprocess.Popen(
                ["ip", "netns", "exec", self.name, sys.executable, "-m", "deploy", *words],
                env=self.environment(**changes),
                cwd=self.folder,
                stdout=out,
                stderr=subprocess.STDOUT,
            )
        return Said(process, file)

    def say(self, *words: str, code: int = 0, **changes: str | None) -> str:
        """What such a command prints, once it has ended with that exit code."""
        return self.begin(*words, **changes).end(code)

    def job(self, verb: str, *words: str, code: int = 0) -> str:
        """A verb of the job."""
        return self.say(verb, "tiny", "--address", self.address, *self.accepts, *words, code=code)

    def launching(self, runs: Path, *changes: str) -> list[str]:
        words = ["launch", "tiny", "--address", self.address, "--runs", str(runs), *self.accepts]
        return [*words, *(word for change in changes for word in ("--set", change))]


class Said:
    """A command that runs."""

    def __init__(self, process: subprocess.Popen, file: Path) -> None:
        self.process, self._file = process, file

    def text(self) -> str:
        return self._file.read_text()

    def end(self, code: int) -> str:
        assert self.process.wait(timeout=DEADLINE_S) == code, self.text()
        assert "Traceback" not in self.text()
        return self.text()


@pytest.fixture(scope="module", params=["token", "disabled"])
def head(request, poll):
    """A head in that mode."""
    if os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare", "nsenter"))):
        pytest.skip("needs root, iproute2 and util-linux: makes namespaces of network and processes")
    if subprocess.run([*IN_NAMESPACES, "--net", "true"], check=False, capture_output=True).returncode != 0:
        pytest.skip("may not make namespaces")
    with (
        tempfile.TemporaryDirectory(prefix="mc", dir="/tmp", ignore_cleanup_errors=True) as folder,
        ExitStack() as stack,
    ):
        yield Head(request.param, Path(folder), stack, poll)


@pytest.fixture
def runs(tiny_run, tmp_path):
    """Where run folders are: a run that begins with PPO."""
    leave_out = shutil.ignore_patterns("checkpoints", "ppo*", "evaluate.json", "*.jsonl", "trajectories")
    shutil.copytree(tiny_run, tmp_path / "runs" / "tiny", ignore=leave_out)
    return tmp_path / "runs"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """This project as a wheel, whose program and whose actors say that they come from it."""
    source, out = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for package in ("actors", "common", "deploy", "learner", "reward_service"):
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("deploy/run.py", "actors/ray_actor.py"):
        with (source / name).open("a") as file:
            file.write(f'\nprint("{name} of the wheel", flush=True)\n')
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out)]
    subprocess.run([*pip, str(source)], check=True, capture_output=True)
    (built,) = out.glob("minichatgpt-*.whl")
    return built
