"""The parent's side of `function_host.py`: starts the process, exchanges lines with a deadline, kills it.

One call at a time. It works on raw pipes in one thread: the process ends with the thread that started it, and what it
prints must be read away all the while, else it would block.
"""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from common.errors import ConfigError, MemberFailedError, PhaseTimeoutError

PIECE_BYTES = 65_536
TAIL_BYTES = 2_000
"""What is kept of the process's last output, for errors."""
END_S = 1.0
"""Time in which a process that was asked to end may say where it is."""


class HostProcess:
    """A running process that holds a function.

    Args:
        process: with pipes for stdin, stdout and stderr, in a process group of its own.
    """

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self._stdin, self._stdout, self._stderr = (p.fileno() for p in (process.stdin, process.stdout, process.stderr))
        os.set_blocking(self._stdin, False)  # a write takes what fits: the deadline holds if nobody reads
        self._tail = b""

    @classmethod
    def start(cls, import_path: str, arguments: Mapping[str, JsonValue], timeout_s: float) -> "HostProcess":
        """Start a process and let it import the function.

        Args:
            import_path: as `package.module:function`.
            arguments: keyword arguments of every call.
            timeout_s: longest time to start and import.

        Raises:
            ConfigError: the function cannot be imported, or not in time, or does not take the arguments; names its path
                and says why.
        """
        host = Path(__file__).with_name("function_host.py")
        command = [sys.executable, "-P", "-X", "faulthandler", str(host), import_path, str(os.getpid())]
        pipe = subprocess.PIPE
        try:
            process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, start_new_session=True)
            started = cls(process)
            answer = started.ask({"path": sys.path, "arguments": arguments}, timeout_s)
        except (OSError, PhaseTimeoutError, MemberFailedError) as error:
            raise ConfigError(f"callable {import_path!r} cannot be imported: {error}") from error
        if "error" in answer:
            started.kill()
            raise ConfigError(
                f"callable {import_path!r} cannot be imported: {answer['error']}; it must be importable where the "
                "reward replicas run, as from an installed package or a folder on PYTHONPATH"
            )
        if "misfit" in answer:
            started.kill()
            raise ConfigError(
                f"callable {import_path!r} cannot be called with (prompts, responses) and arguments = "
                f"{dict(arguments)}: {answer['misfit']}; change the scorer's arguments, or the function"
            )
        return started

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    @property
    def is_running(self) -> bool:
        """Whether it lives."""
        return self._process.poll() is None

    def ask(self, message: Mapping[str, Any], timeout_s: float) -> dict[str, Any]:
        """Send a line and return the line that comes back. Where it raises, the process is gone.

        Raises:
            PhaseTimeoutError: no answer came in time; says where the process was.
            MemberFailedError: the process died, or its answer is none; says how, and its last output.
        """
        self._tail = b""
        end = time.monotonic() + timeout_s
        try:
            answer = json.loads(self._exchange(json.dumps(message).encode() + b"\n", end))
            if not isinstance(answer, dict):
                raise ValueError("the host answers with objects")
        except TimeoutError as error:
            self.kill()
            raise PhaseTimeoutError(f"no answer within {timeout_s:.3g} s{self._last_words()}") from error
        except (BrokenPipeError, EOFError, ValueError) as error:
            self.kill()
            raise MemberFailedError(f"its process ended with {self._exit()}{self._last_words()}") from error
        return answer

    def _exchange(self, unsent: bytes, end: float) -> bytes:
        """Write all of `unsent` and read a line; raises TimeoutError, or EOFError or BrokenPipeError of a dead one."""
        received = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self._stdin, selectors.EVENT_WRITE)
            selector.register(self._stdout, selectors.EVENT_READ)
            selector.register(self._stderr, selectors.EVENT_READ)
            while not received.endswith(b"\n"):
                if time.monotonic() >= end:
                    raise TimeoutError
                for key, _ in selector.select(end - time.monotonic()):
                    if key.fd == self._stdin:
                        unsent = unsent[os.write(self._stdin, unsent[:PIECE_BYTES]) :]
                        if not unsent:
                            selector.unregister(self._stdin)
                        continue
                    piece = os.read(key.fd, PIECE_BYTES)
                    if key.fd == self._stderr:
                        self._tail = (self._tail + piece)[-TAIL_BYTES:]
                    else:
                        received += piece
                    if not piece:
                        selector.unregister(key.fd)
                    if not piece and key.fd == self._stdout:
                        raise EOFError
        return received

    def kill(self) -> None:
        """Ask the process group to end, which makes it say where it is; then kill it."""
        if self._process.returncode is None:
            self._signal(signal.SIGTERM)
            self._read_tail(time.monotonic() + END_S)
            self._signal(signal.SIGKILL)  # before it is waited for: its number cannot be another's yet
            self._process.wait()
        for stream in (self._process.stdin, self._process.stdout, self._process.stderr):
            assert stream is not None
            stream.close()

    def _signal(self, number: int) -> None:
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):  # macOS says the latter of a process that has ended
            return

    def _read_tail(self, end: float) -> None:
        """Read stderr to its end, or until `end`."""
        with selectors.DefaultSelector() as selector:
            selector.register(self._stderr, selectors.EVENT_READ)
            while time.monotonic() < end and selector.select(end - time.monotonic()):
                piece = os.read(self._stderr, PIECE_BYTES)
                if not piece:
                    return
                self._tail = (self._tail + piece)[-TAIL_BYTES:]

    def _exit(self) -> str:
        code = self._process.returncode
        return f"exit code {code}" if code >= 0 else f"signal {signal.Signals(-code).name}"

    def _last_words(self) -> str:
        text = self._tail.decode(errors="replace").strip()
        return f"; last output:\n{text}" if text else ""
