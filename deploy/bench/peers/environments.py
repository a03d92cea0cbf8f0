"""Virtual environments of the peers: built once under a cache folder with pinned versions, and used again.

An environment is complete once it holds a file that says so, written last; one that is not is built anew. Its name
ends in a hash of all that it follows from, so that other pins make another environment. Called by `comparison.py`.
"""

import collections
import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import constants

from common.errors import BenchmarkError

COMPLETE = "complete"
"""File of an environment that is."""
LOG = "pip.log"
_TAIL = 15

Say = Callable[[str], None]
Run = Callable[[Sequence[str], Path, Say], int]
"""Runs a program with its output in a file; returns its exit code."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What is installed for a peer, beside the torch that is ours too."""

    name: str
    pins: tuple[str, ...]

    def requirements(self) -> tuple[str, ...]:
        """For pip: with the torch of this process, so that nobody is faster by another one."""
        return (f"torch=={torch.__version__.partition('+')[0]}", *self.pins)

    def folder(self, cache: Path) -> Path:
        """Where it is, or will be."""
        text = "\n".join((sys.version, sys.executable, *self.requirements()))
        return cache / f"{self.name}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


_TRANSFORMERS_5 = ("transformers==5.23.0", "accelerate==1.15.0", "datasets==5.2.0", "numpy==2.4.6")
TRL_CLASSIC = Environment(
    "trl-0.11.4",
    ("trl==0.11.4", "transformers==4.46.3", "accelerate==1.15.0", "datasets==5.0.1", "numpy==2.4.6", "rich==15.0.0"),
)
TRL_EXPERIMENTAL = Environment("trl-1.9.2", ("trl==1.9.2", *_TRANSFORMERS_5))
TRL_GROUP = Environment("trl-1.16.0", ("trl==1.16.0", *_TRANSFORMERS_5))


def default_cache() -> Path:
    """Beside what else is cached, as HF_HOME or HF_ASSETS_CACHE say."""
    return Path(constants.HF_ASSETS_CACHE, "minichatgpt-bench")


def run_logged(command: Sequence[str], log: Path, say: Say) -> int:
    """Run a program; each line of its output goes into the log and is said."""
    with log.open("a", encoding="utf-8") as file:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            for line in process.stdout:
                file.write(line)
                say(line.strip())
        return process.returncode


def python_of(environment: Environment, cache: Path, say: Say, run: Run = run_logged) -> Path:
    """The interpreter of an environment, which is built first where it is not there.

    Raises:
        BenchmarkError: it cannot be built; names the log and shows its end.
    """
    folder = environment.folder(cache)
    python = folder / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if (folder / COMPLETE).exists():
        return python
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    say(f"building {folder}")
    pip = (str(python), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar", "off")
    for command in ((sys.executable, "-m", "venv", str(folder)), (*pip, *environment.requirements())):
        if (code := run(command, folder / LOG, say)) != 0:
            raise BenchmarkError(
                f"the environment of {environment.name} cannot be built: exit code {code} of {' '.join(command)}\n"
                f"{tail(folder / LOG)}\nAll of it is in {folder / LOG}. It needs a package index and about 1.5 GB; the "
                "same command tries again"
            )
    (folder / COMPLETE).touch()
    return python


def tail(log: Path) -> str:
    """The last lines of a log."""
    if not log.exists():
        return ""
    with log.open(encoding="utf-8", errors="replace") as file:
        return "".join(collections.deque(file, maxlen=_TAIL)).rstrip()
