"""How long simulated calls take: a pure function of a seed and of what is asked, so that two runs meet the same times.

Knows no Ray: both the simulated members (simulated.py) and the schedule without a control plane (free_control.py) ask
here.
"""

import math
from dataclasses import dataclass

import numpy as np


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
