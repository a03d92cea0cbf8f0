"""What the loop of a run meets in the place of a learner, of an operator, of records and of checkpoints: nothing that
takes the driver's time. For `bench scale` and `bench overlap`; knows no Ray.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from common.config import RunConfig
from common.records import ChunkHandle, Identity, UpdateReport, WeightsHandle
from common.run_settings import RunSettings
from deploy.bench.latency import samples_of


class WaitingLearner:
    """Implements `common.ports.Learner`: takes handles, fetches nothing, and is done after a fixed time.

    Args:
        update_s: that time.
        buffer: what a handle of its weights refers to; on Ray an object of the store.
    """

    def __init__(self, update_s: float, buffer: Any = None) -> None:
        self.step = 0
        self.ended_at: list[float] = []
        """When each update ended, by the performance counter."""
        self._update_s = update_s
        self._chunks: Sequence[ChunkHandle] = ()
        self._buffer = buffer

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
        self.ended_at.append(time.perf_counter())
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


class NoRecords:
    """Implements `common.ports.Recorder`: nobody reads them."""

    def record(self, report: UpdateReport) -> None:
        """Nowhere."""


class NoCheckpoints:
    """Implements `common.ports.Checkpoints`: their writing is a matter of the learner's node."""

    def due(self, step: int) -> bool:
        """Never."""
        return False

    def save(self, learner: Any, rollouts: Any) -> None:
        """Never asked."""

    def wait(self) -> None:
        """Nothing is on its way."""
