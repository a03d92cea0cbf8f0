"""What a process can say of itself beside its work: where each of its threads is, and how much memory it holds.

Called in a heartbeat, by a thread of its own, so that a process that hangs can still be asked where.
"""

import os
import resource
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

_STATM = Path("/proc/self/statm")
_PID_NAMESPACE = Path("/proc/self/ns/pid")


def describe(*, threads: int, node: str, node_ip: str = "") -> dict[str, Any]:
    """What a member answers when it is ready."""
    pid, namespace = os.getpid(), pid_namespace()
    return {"threads": threads, "node": node, "node_ip": node_ip, "pid": pid, "pid_namespace": namespace}


def pid_namespace() -> str:
    """Where this process's number means this process: containers of one machine have their own; empty without /proc."""
    return os.readlink(_PID_NAMESPACE) if _PID_NAMESPACE.exists() else ""


def heartbeat() -> dict[str, Any]:
    """What a member answers as a sign of life."""
    return {"rss_bytes": rss_bytes()}


def stacks() -> str:
    """The Python stack of every thread, the newest call last; the thread that asks says so."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    parts = []
    for ident, frame in sys._current_frames().items():
        asks = " (asks)" if ident == threading.get_ident() else ""
        head = f"thread {names.get(ident, ident)}{asks}:\n"
        parts.append(head + "".join(traceback.format_stack(frame)))
    return "\n".join(parts)


def rss_bytes() -> int:
    """Memory of this process that is in RAM, in bytes; where there is no /proc, the most it ever was."""
    if _STATM.is_file():
        return int(_STATM.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB
