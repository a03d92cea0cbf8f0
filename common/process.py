"""What a process says of itself: for signs of life, and for the moment in which it is stuck."""

import os
import resource
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

STATM = Path("/proc/self/statm")


def describe(*, threads: int, node: str) -> dict[str, Any]:
    """What a member answers when it is ready."""
    return {"threads": threads, "node": node, "pid": os.getpid()}


def heartbeat() -> dict[str, Any]:
    """What a member answers as a sign of life."""
    return {"rss_bytes": rss_bytes()}


def rss_bytes() -> int:
    """Resident memory of this process in bytes; where there is no /proc, the largest that it ever was."""
    if STATM.is_file():
        return int(STATM.read_text(encoding="ascii").split()[1]) * resource.getpagesize()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def stacks() -> str:
    """The Python stack of every thread of this process."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"--- {names.get(ident, ident)}\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )
