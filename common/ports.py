"""The protocols through which the rooms meet. `deploy` wires the implementations, with Ray or without."""

from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from pydantic import JsonValue

from common.checkpoint import ShardFiles
from common.records import ChunkHandle, Stats, UpdateReport, WeightsHandle

Role = Literal["rollout", "reward"]
Method = Literal["generate", "score", "reference"]


@dataclass(frozen=True, slots=True)
class Call:
    """One asynchronous call on one member of a pool; its result is two objects, a payload and a Stats."""

    call_id: int
    role: Role
    member: str
    method: Method
    argument: Any
    """A GenerateRequest, or a reference to the RolloutChunk to judge."""


@dataclass(frozen=True, slots=True)
class Reply:
    """How a call ended."""

    call_id: int
    payload: Any = None
    """Reference to the payload; never looked into by the driver."""
    stats: Stats | None = None
    error: BaseException | None = None
    """Why it failed; payload and stats are None then."""


class Transport(Protocol):
    """Carries calls to the pools' members and brings back their replies."""

    def send(self, call: Call) -> None:
        """Start a call; returns at once."""

    def wait(self, timeout_s: float) -> list[Reply]:
        """Replies that have come, at least one unless `timeout_s` seconds pass first."""

    def fetch(self, ref: Any, timeout_s: float) -> Any:
        """Look into a payload; only for evaluation, never in the training loop."""


class Learner(Protocol):
    """Owner of the trained weights."""

    @property
    def step(self) -> int:
        """Updates done."""

    def weights(self) -> WeightsHandle:
        """The policy as it is now."""

    def update(self, chunks: Sequence[ChunkHandle]) -> UpdateReport:
        """Train on the chunks once; see `learner.ppo.PPOLearner.update` for what comes back if nothing was finite."""

    def begin_save(self, url: str) -> "Future[ShardFiles]":
        """Write the learner's part of a checkpoint into the folder `url`, in the background.

        All of it is copied before this returns, so that the next update may begin at once.
        """


class Rollouts(Protocol):
    """Source of judged samples."""

    def publish(self, weights: WeightsHandle) -> None:
        """All that is generated from now on comes from these weights."""

    def collect(self, num_samples: int) -> list[ChunkHandle]:
        """Exactly `num_samples` samples, generated, judged and accounted for."""

    def account(self, report: UpdateReport) -> None:
        """Book the samples that the update trained on."""

    def state_dict(self) -> dict[str, JsonValue]:
        """What a checkpoint keeps: where the prompt stream is, and the ledger."""


class Recorder(Protocol):
    """Keeps what an update reports."""

    def record(self, report: UpdateReport) -> None:
        """Write metrics and samples, move the progress bar."""


class Checkpoints(Protocol):
    """Keeps the state of a run, in the background."""

    def due(self, step: int) -> bool:
        """Whether a checkpoint is to be written after update `step`.

        Raises:
            CheckpointError: two saves in a row have failed.
        """

    def save(self, learner: Learner, rollouts: Rollouts) -> None:
        """Begin a checkpoint; one that is still being written is waited for first. Raises as `due` does."""

    def wait(self) -> None:
        """Return once the last checkpoint is whole and counts; raises CheckpointError if it failed."""
