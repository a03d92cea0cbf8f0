"""Peers as processes: each loads once, then does one step whenever it is its turn. The other side of `turns.py`.

with Children(...) as peers:
    for name in peers: peers.step(name)      one at a time: whoever is not at work sleeps at its input
"""

import json
import os
import selectors
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from common.errors import BenchmarkError
from deploy.bench.peers.environments import tail
from deploy.bench.peers.programs.turns import STEP

START_TIMEOUT_S = 600.0
STEP_TIMEOUT_S = 1800.0
_END_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Peer:
    """A program to be run, and from where."""

    name: str
    command: tuple[str, ...]
    python_path: Path
    """Root of the modules that the program imports."""


@dataclass(frozen=True, slots=True)
class StepTimes:
    """What a peer says of one step."""

    generation: float
    """Seconds, as those below: publishing included where there is any."""
    forward: float
    """Reward, reference, old logprobs and values."""
    update: float
    total: float
    score: float
    """Mean reward."""
    kl: float | None
    """To the reference, in nats per sample; None: not told."""


class Child:
    """One peer's process.

    Args:
        peer: which.
        folder: where its log goes.
        threads: of OpenMP.
    """

    def __init__(self, peer: Peer, folder: Path, threads: int) -> None:
        self.name = peer.name
        self.log = folder / f"{peer.name}.log"
        environment = os.environ | {
            "PYTHONPATH": str(peer.python_path),
            "OMP_NUM_THREADS": str(threads),
            "TOKENIZERS_PARALLELISM": "false",
            "HF_HUB_OFFLINE": "1",
            "TRL_EXPERIMENTAL_SILENCE": "1",
        }
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                peer.command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, cwd=folder, env=environment
            )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._input: IO[bytes] = self._process.stdin
        self._output: IO[bytes] = self._process.stdout
        self._unread = b""

    def versions(self) -> Mapping[str, str]:
        """Of its libraries, once it is ready; raises BenchmarkError if it does not get so far."""
        found: Mapping[str, str] = self._answer(START_TIMEOUT_S)["versions"]
        return found

    def step(self) -> StepTimes:
        """Have it do one step; raises BenchmarkError if it fails."""
        try:
            self._input.write(f"{STEP}\n".encode())
            self._input.flush()
        except BrokenPipeError as error:
            raise self._failure("has ended") from error
        return StepTimes(**self._answer(STEP_TIMEOUT_S))

    def close(self) -> None:
        """End it: kindly, then not."""
        self._output.close()
        try:
            self._input.close()
            self._process.wait(_END_TIMEOUT_S)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()

    def _answer(self, timeout_s: float) -> dict[str, Any]:
        """The next line of its output, parsed."""
        deadline = time.monotonic() + timeout_s
        with selectors.DefaultSelector() as selector:
            selector.register(self._output, selectors.EVENT_READ)
            while b"\n" not in self._unread:
                if not selector.select(max(0.0, deadline - time.monotonic())):
                    raise self._failure(f"does not answer within {timeout_s:g} s")
                if not (piece := os.read(self._output.fileno(), 1 << 16)):
                    raise self._failure("has ended")
                self._unread += piece
        line, _, self._unread = self._unread.partition(b"\n")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def _failure(self, what: str) -> BenchmarkError:
        return BenchmarkError(f"{self.name} {what}; the end of what it wrote:\n{tail(self.log)}")


@contextmanager
def started(peers: Sequence[Peer], folder: Path, threads: int) -> Iterator[Mapping[str, Child]]:
    """All peers, loaded; one after the other, for loading takes memory and both cores.

    Raises:
        BenchmarkError: one of them does not get ready.
    """
    with ExitStack() as stack:
        children = {}
        for peer in peers:
            child = Child(peer, folder, threads)
            stack.callback(child.close)
            child.versions()
            children[peer.name] = child
        yield children
