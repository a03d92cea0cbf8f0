"""How long simulated calls take: a pure function of a seed and of what is asked, so that two runs meet the same times.

Knows no Ray: both the simulated members (simulated.py) and the schedule without a control plane (free_control.py) ask
here.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from common.records import ChunkHandle


@dataclass(frozen=True, slots=True)
class Latency:
    """Log-normal seconds of generating a chunk; judging takes the same time for all."""

    median_s: float = 10.0
    sigma: float = 0.8
    """Of the logarithm; the longest of a thousand calls then takes about ten times the median."""
    judge_s: float = 0.1
    seed: int = 0

    def generate_s(self, chunk_index: int) -> float:
        """Of one chunk; whoever generates it."""
        normal = np.random.default_rng((self.seed, chunk_index)).standard_normal()
        return self.median_s * math.exp(self.sigma * float(normal))


class Worked(NamedTuple):
    """One simulated generation."""

    start_s: float
    """Of one clock for all: the monotonic one, which the processes of a machine share, or a simulated one."""
    planned_s: float
    """The simulated latency, whatever else the host had to do meanwhile."""


def busy_share(worked: Sequence[Worked], workers: int, begin_s: float, end_s: float) -> float:
    """Share of the workers' time between two moments in which they were at work, as long as it was planned."""
    busy_s = sum(max(0.0, min(end_s, w.start_s + w.planned_s) - max(begin_s, w.start_s)) for w in worked)
    return busy_s / workers / (end_s - begin_s)


def samples_of(handles: Sequence[ChunkHandle]) -> tuple[tuple[int, int], ...]:
    """(draw_index, sample_index) of all, sorted: what an update says that it trained on."""
    each = ((draw, k) for chunk in handles for draw in chunk.draw_indices for k in range(chunk.samples_per_prompt))
    return tuple(sorted(each))
