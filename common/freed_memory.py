"""Memory that a process lets go and takes again at once, as a learner its gradients at every step, stays with it, in
large pages.

By default the C library gives large blocks back to the kernel, and the next step pays for every page anew: about a
third of the time of the matrix products that make gradients. And by default pages have 4 KiB: weights, gradients and
optimizer state of a model of 135M parameters lie in half a million of them, far more than a processor has at hand the
addresses of, and on a virtual machine each that it looks up costs twice. Called once by who builds a learner in its
process.

It holds for the whole process to its end: what the system sees of it stays at its peak. A learner's process, which
needs its peak again at every step, loses nothing by that. With `--local` driver, workers and replicas share the
process; then a stage begins with the memory that the largest one before it had, and the run's peak is that of its
largest stage, as without; and memory that was asked for as zeros is written to at once. Of the processes under Ray only
those that train do it.
"""

import ctypes
import functools
import mmap
import os
import resource
import sys
from pathlib import Path

_TRIM_THRESHOLD, _TOP_PAD, _MMAP_MAX = -1, -2, -4
"""Names of the settings in the C library's malloc.h."""
_OVERCOMMIT = Path("/proc/sys/vm/overcommit_memory")


@functools.cache
def keep_freed_memory() -> bool:
    """Let the C library keep what is freed, for this process; returns whether it is one that can."""
    if not sys.platform.startswith("linux"):
        return False
    library = ctypes.CDLL(None)
    try:
        setting = library.mallopt
    except AttributeError:  # not the GNU library
        return False
    never = -1
    kept = all(setting(name, value) for name, value in ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, never), (_TOP_PAD, 1 << 26)))
    if kept and addresses_are_free():
        _ask_for_large_pages(library, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    return kept


def addresses_are_free() -> bool:
    """Whether a process may hold addresses that it does not use: not where they count as memory, or are limited."""
    limits = (resource.getrlimit(kind)[0] for kind in (resource.RLIMIT_AS, resource.RLIMIT_DATA))
    if any(limit != resource.RLIM_INFINITY for limit in limits):
        return False
    try:
        return _OVERCOMMIT.read_text(encoding="ascii").strip() != "2"
    except OSError:  # hidden from this process
        return False


def _ask_for_large_pages(library: ctypes.CDLL, size: int) -> None:
    """Have the C library's next blocks, up to `size` bytes of them, in large pages, where the kernel has any to give.

    The addresses are taken and given back: as freed memory is kept, they stay the heap's. Memory they take only as they
    are written to. More than the machine has could not be taken, and would let no process be forked.
    """
    library.malloc.restype = ctypes.c_void_p
    library.malloc.argtypes = (ctypes.c_size_t,)
    library.free.argtypes = (ctypes.c_void_p,)
    library.madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
    block = library.malloc(size)
    if block is None:
        return
    first = block // mmap.PAGESIZE * mmap.PAGESIZE
    library.madvise(first, block + size - first, mmap.MADV_HUGEPAGE)
    library.free(block)
