"""What a process frees and takes again costs no page faults, and lies in large pages."""

import subprocess
import sys
from pathlib import Path

import pytest

from common.freed_memory import addresses_are_free

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the GNU C library is Linux's")

FAULTS = """
import resource, sys
import numpy as np
from common.freed_memory import keep_freed_memory
if sys.argv[1] == "keep":
    assert keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        blocks = [np.ones(size) for size in (1 << 21, 1 << 23, 1 << 16)]
        del blocks
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(faults())
"""
FLAGS = """
import subprocess, sys, threading
import numpy as np
from common.freed_memory import keep_freed_memory
def flags(block):
    address, found = block.ctypes.data, False
    for line in open("/proc/self/smaps"):
        name, _, rest = line.partition(" ")
        if ":" not in name and "-" in name:
            low, high = (int(edge, 16) for edge in name.split("-"))
            found = low <= address < high
        elif found and name == "VmFlags:":
            return rest.split()
def work():
    if sys.argv[1] == "keep":
        assert keep_freed_memory()
    print("hg" in flags(np.ones(1 << 18)), "hg" in flags(np.ones(1 << 24)))
thread = threading.Thread(target=work)
thread.start() if sys.argv[2] == "thread" else work()
thread.join() if sys.argv[2] == "thread" else None
subprocess.run(["true"], check=True, preexec_fn=lambda: None)  # a fork is refused where too much is reserved
"""


def printed(program: str, *arguments: str) -> str:
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_freed_memory_is_taken_again_without_page_faults():
    assert int(printed(FAULTS, "usual")) > 10 * max(int(printed(FAULTS, "keep")), 1)


LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage")


@pytest.mark.skipif(not LARGE_PAGES.exists() or not addresses_are_free(), reason="nothing can be asked for here")
def test_blocks_lie_where_large_pages_are_asked_for(monkeypatch):
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert printed(FLAGS, "usual", "main").split()[0] == "False"  # large arrays numpy may ask for itself
    assert printed(FLAGS, "keep", "main").split() == ["True", "True"]
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")  # as processes have it that train under Ray
    assert printed(FLAGS, "keep", "thread").split() == ["True", "True"]


def limited(program: str, setting: str) -> str:
    """What it prints where the process has no addresses to spare."""
    return printed(
        f"import resource; resource.setrlimit(resource.{setting}, (1 << 44, 1 << 44))\n{program}", "keep", "main"
    )


@pytest.mark.parametrize("setting", ["RLIMIT_AS", "RLIMIT_DATA"])
def test_addresses_that_are_limited_are_left_alone(setting):
    assert limited(FLAGS, setting).split()[0] == "False"


def test_a_kernel_that_hides_its_settings_ends_no_learner(monkeypatch, tmp_path):
    monkeypatch.setattr("common.freed_memory._OVERCOMMIT", tmp_path / "hidden")
    assert not addresses_are_free()
