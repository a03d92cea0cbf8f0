"""A plant that the autoscaler works on: a run whose updates take what a simple model says, with noise."""

from dataclasses import dataclass, replace

import numpy as np
import pytest

from common.autoscaler_config import AutoscalerConfig
from deploy.autoscaler.decision import State
from deploy.autoscaler.forecast import Observation
from deploy.autoscaler.policy import Policy


@dataclass(frozen=True)
class Load:
    """What an update costs, in seconds."""

    chunk_s: float
    other_s: float
    judge_s: float = 0.0
    rest_s: float = 0.0
    cpus: int = 1000
    """Where more workers share them, each is slower."""

    def collect_s(self, workers, chunks):
        return max(-(-chunks // workers) * self.own_chunk_s(workers), self.judge_s) + self.rest_s

    def own_chunk_s(self, workers):
        return self.chunk_s * max(1.0, workers / self.cpus)

    def seen(self, workers, chunks, *, now_s=0.0, step=1, starting=0, target=None, queue_s=0.0):
        collect_s = self.collect_s(workers, chunks)
        update_s = collect_s + self.other_s
        return Observation(
            now_s=now_s,
            step=step,
            update_s=update_s,
            learner_wait_fraction=collect_s / update_s,
            evaluate_fraction=0.0,
            worker_busy_fraction=chunks * self.own_chunk_s(workers) / (workers * update_s),
            reward_busy_fraction=self.judge_s / update_s,
            reward_queue_s=queue_s,
            active=workers,
            starting=starting,
            target=workers if target is None else target,
        )


class Plant:
    """A run under the policy: workers come after some updates, and every time is noisy.

    Args:
        config: of the autoscaler.
        chunks: of an update.
        workers: at the start.
        start_updates: updates until a new worker takes work.
        noise: standard deviation of the logarithm of every time.
    """

    def __init__(self, config, chunks, workers, *, start_updates=2, noise=0.0, seed=0):
        self.policy, self.state, self.chunks = Policy(config, chunks), State(), chunks
        self.active = self.target = workers
        self.start_updates, self.noise, self.random = start_updates, noise, np.random.default_rng(seed)
        self.ready_in = 0
        self.now_s, self.step, self.history = 0.0, 0, []

    def run(self, load, updates):
        for _ in range(updates):
            self._update(load)
        return [decision for _, decision in self.history[-updates:]]

    def _update(self, load):
        factors = np.exp(self.noise * self.random.standard_normal(4))
        plain = (load.chunk_s, load.other_s, load.judge_s, load.rest_s)
        noisy = Load(*(value * factor for value, factor in zip(plain, factors, strict=True)), cpus=load.cpus)
        starting = 0
        if self.active < self.target:
            self.ready_in -= 1
            if self.ready_in <= 0:
                self.active = self.target
            starting = self.target - self.active
        seen = noisy.seen(self.active, self.chunks, step=self.step, target=self.target)
        self.now_s += seen.update_s
        self.step += 1
        seen = replace(seen, now_s=self.now_s, starting=starting)
        self.state, decision = self.policy.observe(self.state, seen)
        self.history.append((seen, decision))
        if decision.target > self.target:
            self.ready_in = self.start_updates
        elif decision.target < self.target:
            self.active = decision.target
        self.target = decision.target


@pytest.fixture(scope="session")
def load():
    return Load


@pytest.fixture(scope="session")
def plant():
    return Plant


@pytest.fixture(scope="session")
def configured():
    """Its settings, without cool-downs unless they are given."""

    def make(**changes):
        return AutoscalerConfig(**{"enabled": True, "up_cooldown_s": 0, "down_cooldown_s": 0, **changes})

    return make
