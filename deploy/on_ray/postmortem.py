"""Why a Ray actor died, in a few sentences: from Ray's error, what the supervisor knew of it, and its own last words.

Ray's texts were read off version 2.60; one that is not known is quoted in short.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import ray
import ray._private.worker
from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, RayError, WorkerCrashedError

from deploy.preflight.finding import show_bytes

DEATHS: Final = (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError)
"""Errors after which the process is gone. Ray's memory monitor is not told as a RayActorError."""
MAX_LINES = 8
"""Of a log, that are quoted."""
_TAIL_BYTES = 1 << 16
_MAX_CHARACTERS = 300

_CHATTER = re.compile(
    r"\s*$|:(job_id|actor_name|task_name|info_message):|\[\d{4}-\d\d-\d\d .*? [IWEFD] \d+ \d+\]|\s*@ |PC: @"
    r"|Extension modules:|.*\d+%\|"
)
"""Lines that tell nothing: Ray's marks and C++ log, addresses of a crash, progress bars."""
_CRASH = re.compile(r"Fatal Python error: ")


@dataclass(frozen=True, slots=True)
class MemberFacts:
    """What a supervisor knows of a process."""

    role: str
    name: str
    phase: str
    """What it was doing: the method that was called."""
    pid: int | None = None
    """None where it never answered."""
    node_id: str = ""
    """Hexadecimal."""
    node_ip: str = ""
    rss_bytes: int | None = None
    """Memory that it held when it last gave a sign of life."""
    rss_age_s: float = 0.0
    """How long before its death that was, in seconds."""


@dataclass(frozen=True, slots=True)
class LogTail:
    """The end of a log."""

    path: Path
    lines: tuple[str, ...]


def describe_death(error: RayError, member: MemberFacts) -> str:
    """Role, name, node, phase, last memory, cause, and the end of its log, or where the log is.

    Args:
        error: one of DEATHS, as `ray.get` raised it.
        member: the process that is gone.
    """
    memory = (
        "" if member.rss_bytes is None else f"; it held {show_bytes(member.rss_bytes)} {member.rss_age_s:.0f} s before"
    )
    head = f"{member.role} {member.name} died in {member.phase}: {exit_cause(error)}"
    return f"{head} It was {_whereabouts(member)}{memory}.{_log_of(member)}"


def _whereabouts(member: MemberFacts) -> str:
    process = "a process that never answered" if member.pid is None else f"process {member.pid}"
    node = f" on node {member.node_ip or 'unknown'}" + (f" ({member.node_id[:8]})" if member.node_id else "")
    return process + node


def _log_of(member: MemberFacts) -> str:
    if member.pid is None:
        return ""
    if member.node_ip and member.node_ip != ray.util.get_node_ip_address():
        return f" Its log is on that node: worker-*-{member.pid}.err and .out in the logs folder of the Ray session."
    tail = last_words(Path(ray._private.worker._global_node.get_logs_dir_path()), member.pid)
    if tail is None:
        return " It left no log on this node."
    if not tail.lines:
        return f" It wrote nothing to its log {tail.path}."
    return f" Its log {tail.path} ends:\n" + "\n".join(f"  | {line}" for line in tail.lines)


def last_words(logs: Path, pid: int) -> LogTail | None:
    """The end of what a worker process wrote, its errors first, without what Ray writes; None if it has no log.

    Where Python itself crashed, its stack.
    """
    files = sorted(logs.glob(f"worker-*-{pid}.err")) + sorted(logs.glob(f"worker-*-{pid}.out"))
    tails = [LogTail(path, _useful(_tail(path))) for path in files]
    return next((tail for tail in tails if tail.lines), tails[0] if tails else None)


def _tail(path: Path) -> list[str]:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        return file.read().decode("utf-8", errors="replace").splitlines()


def _useful(lines: Sequence[str]) -> tuple[str, ...]:
    said = [line.rstrip()[:_MAX_CHARACTERS] for line in lines if not _CHATTER.match(line)]
    for number, line in enumerate(said):
        if _CRASH.search(line):
            return tuple(said[number : number + MAX_LINES])
    return tuple(said[-MAX_LINES:])


def exit_cause(error: RayError) -> str:
    """One or two sentences on why the process is gone."""
    text = str(error)
    if isinstance(error, OutOfMemoryError):
        used = re.search(r"was ([^(\n]+? used / [^(\n]+? limit)", text)
        return (
            f"Ray's memory monitor killed it, for its node ran low on memory ({used[1] if used else _brief(text)}). "
            "Give the role memory_bytes, run fewer processes per node, or make batches smaller."
        )
    if isinstance(error, RayActorError) and error.actor_init_failed:
        return f"its constructor raised {_brief(text.strip().splitlines()[-1])}."
    if isinstance(error, RayActorError) and error.preempted:
        return "its node was taken away (preempted)."
    for pattern, explain in _CAUSES:
        if match := re.search(pattern, text, re.DOTALL):
            return explain(match)
    return f"{type(error).__name__}: {_brief(_last_line(text))}"


def _exited(match: re.Match[str]) -> str:
    detail = match[1]
    if "End of file" in detail:
        return (
            "its process ended without a word: killed from outside (SIGKILL, the kernel's out-of-memory killer) or "
            "crashed (SIGSEGV, SIGABRT)."
        )
    if code := re.search(r"exit code (\d+)", detail):
        return f"its process exited with code {code[1]}."
    return f"its process ended: {_brief(detail)}"


_CAUSES: tuple[tuple[str, Callable[[re.Match[str]], str]], ...] = (
    (r"killed by `ray\.kill`", lambda match: "it was killed by this run (ray.kill)."),
    (r"node has died\..*?terminated \w+: ([^\n]+)", lambda match: f"its node died: {_brief(match[1])}."),
    (r"node has died\.(.*)", lambda match: f"its node died: {_brief(_last_line(match[1]))}."),
    (r"owner .*?has died", lambda match: "the process that had started it is gone."),
    (r"Worker exit detail: ([^\n]+)", _exited),
)
"""What Ray writes, and what it means; the first that is found counts."""


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "no reason given"


def _brief(text: str) -> str:
    shown = " ".join(text.split())
    return shown if len(shown) <= _MAX_CHARACTERS else shown[: _MAX_CHARACTERS - 1] + "…"
