"""What this process has used so far: CPU seconds, by thread where the system says it, and memory."""

import os
import threading
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from common.vitals import rss_bytes

_TASKS = Path("/proc/self/task")


@dataclass(frozen=True, slots=True)
class Cost:
    """At one moment."""

    at_s: float
    """Of the monotonic clock."""
    cpu_s: float
    """User and system time of all threads."""
    by_thread: Mapping[str, float]
    """The same by name of the thread; numbers at the end of names are left out. Empty where there is no /proc."""
    rss_bytes: int


def own_cost() -> Cost:
    """Of this process, now."""
    return Cost(time.monotonic(), time.process_time(), cpu_by_thread(), rss_bytes())


def cpu_by_thread() -> dict[str, float]:
    """CPU seconds of each thread that lives: Python's by their own names, others by those that the system knows."""
    names = {thread.native_id: thread.name for thread in threading.enumerate() if not thread.name.startswith("Dummy")}
    tick_s = 1 / os.sysconf("SC_CLK_TCK")
    spent: defaultdict[str, float] = defaultdict(float)
    for task in _TASKS.iterdir() if _TASKS.is_dir() else ():
        try:
            comm, _, rest = (task / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")
        except OSError:
            continue  # it has ended meanwhile
        user, system = rest.split()[11:13]
        name = names.get(int(task.name), comm.partition("(")[2])
        spent[name.rstrip("0123456789_-.")] += (int(user) + int(system)) * tick_s
    return dict(spent)
