"""What the loop of a run meets in `bench scale` in the place of a learner, of an operator and of checkpoints: nothing
that takes the driver's time.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import ray

from common.config import RunConfig
from common.records import ChunkHandle, Identity, UpdateReport, WeightsHandle
from common.run_settings import RunSettings
from deploy.bench.latency import samples_of


class WaitingLearner:
    """Implements `common.ports.Learner`: takes handles, fetches nothing, and is done after a fixed time.

    Args:
        update_s: that time.
    """

    def __init__(self, update_s: float) -> None:
        self.step = 0
        self._update_s = update_s
        self._chunks: Sequence[ChunkHandle] = ()
        self._buffer = ray.put(np.zeros(16, np.float32))

    def weights(self) -> WeightsHandle:
        """Of the present step."""
        return WeightsHandle(Identity(0, self.step), self._buffer, self.step, ())

    def prepare(self, chunks: Sequence[ChunkHandle]) -> list[int]:
        """Nothing is lost."""
        self._chunks = chunks
        return []

    def update(self, settings: RunSettings) -> UpdateReport:
        """Wait."""
        time.sleep(self._update_s)
        trained = samples_of(self._chunks)
        self.step += 1
        self._chunks = ()
        metrics = {"score_mean": 0.5, "response_tokens": 1.0}
        return UpdateReport(self.step, Identity(0, self.step), trained, metrics, {"train": self._update_s})

    def begin_save(self, url: str) -> "Future[Any]":
        """No checkpoint is ever due."""
        raise AssertionError("no checkpoint is due")


class FixedSettings:
    """Implements `common.ports.Steering`: nobody steers."""

    def __init__(self, config: RunConfig) -> None:
        assert config.ppo is not None, "it is a PPO run"
        self.settings = RunSettings.of(config.ppo)

    def at(self, step: int) -> RunSettings:
        """As configured."""
        return self.settings


class NoCheckpoints:
    """Implements `common.ports.Checkpoints`: their writing is a matter of the learner's node."""

    def due(self, step: int) -> bool:
        """Never."""
        return False

    def save(self, learner: Any, rollouts: Any) -> None:
        """Never asked."""

    def wait(self) -> None:
        """Nothing is on its way."""
