"""What this machine can do at best: the rate of matrix products and the bandwidth of memory, measured first."""

import os
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import torch

from common.products import project

REPEATS = 7
GEMM_SIZE = 1024
COPY_BYTES = 1 << 28


@dataclass(frozen=True, slots=True)
class Roofline:
    """The machine's limits, with as many threads as torch uses in this process."""

    gemm_flops: float
    """Multiplications and additions per second of float32 matrix products, each counted; of the faster library."""
    copy_bytes: float
    """Bytes copied per second from memory to memory; reading and writing count once."""
    threads: int

    def describe(self) -> dict[str, Any]:
        """For the JSON of a benchmark."""
        return asdict(self) | {"cpus": os.cpu_count(), "machine": platform.machine(), "torch": torch.__version__}


def measure_roofline() -> Roofline:
    """The best of several, for a limit is what is possible; takes about a second."""
    a, b = torch.randn(GEMM_SIZE, GEMM_SIZE), torch.randn(GEMM_SIZE, GEMM_SIZE)
    product = torch.empty(GEMM_SIZE, GEMM_SIZE)
    source, target = torch.ones(COPY_BYTES // 4), torch.zeros(COPY_BYTES // 4)
    gemm_s = min(best(lambda: torch.mm(a, b, out=product)), best(lambda: project(a, b)))
    copy_s = best(lambda: target.copy_(source))
    return Roofline(2 * GEMM_SIZE**3 / gemm_s, COPY_BYTES / copy_s, torch.get_num_threads())


def best(work: Callable[[], object]) -> float:
    """Seconds of the fastest third of several repeats, the first thrown away."""
    seconds = []
    for _ in range(REPEATS + 1):
        start = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - start)
    return statistics.mean(sorted(seconds[1:])[: REPEATS // 3])
