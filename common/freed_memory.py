"""Memory that a process lets go and takes again at once, as a learner its gradients at every step, stays with it.

By default the C library gives large blocks back to the kernel, and the next step pays for every page anew: about a
third of the time of the matrix products that make gradients. Called once by who builds a learner in its process.

It holds for the whole process to its end: what the system sees of it stays at its peak. A learner's process, which
needs its peak again at every step, loses nothing by that. With `--local` driver, workers and replicas share the
process; then a stage begins with the memory that the largest one before it had, and the run's peak is that of its
largest stage, as without. Of the processes under Ray only those that train do it.
"""

import ctypes
import sys

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Names of the settings in the C library's malloc.h."""


def keep_freed_memory() -> bool:
    """Let the C library keep what is freed, for this process; returns whether it is one that can."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        setting = ctypes.CDLL(None).mallopt
    except AttributeError:  # not the GNU library
        return False
    never = -1
    return all(setting(name, value) for name, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, never), (_TOP_PAD, 1 << 26)))
