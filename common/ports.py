"""The protocols through which the rooms meet. `deploy` wires the implementations, with Ray or without."""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol

from common.records import ChunkHandle, Stats, UpdateReport, WeightsHandle
from common.run_settings import RunSettings

if TYPE_CHECKING:
    from common.checkpoint import ShardFiles  # which needs torch, as nothing else here does

Role = Literal["rollout", "reward"]
Method = Literal["ready", "adopt", "prefetch", "probe", "heartbeat", "generate", "score", "evaluate", "reference"]
WORK: Final = frozenset({"generate", "score", "evaluate", "reference"})
"""Methods that answer with a payload and a Stats."""
Cause = Literal["raised", "died", "lost"]


class MemberKey(NamedTuple):
    """One life of one member of a pool: a slot keeps its name over restarts, so that metrics keep their labels."""

    role: Role
    slot: str
    """As in `worker-0`."""
    incarnation: int
    """0 for the first life."""

    def __str__(self) -> str:
        return f"{self.role} member {self.slot}"


@dataclass(frozen=True, slots=True)
class Call:
    """One asynchronous call on one member; work (a method of WORK) brings a payload and a Stats."""

    call_id: int
    member: MemberKey
    method: Method
    argument: Any = None
    """A GenerateRequest, a WeightsHandle to adopt or prefetch, or a reference to the RolloutChunk to judge."""


@dataclass(frozen=True, slots=True)
class Reply:
    """How a call ended."""

    call_id: int
    payload: Any = None
    """Of work: reference to the payload, never looked into by the driver. Else: what the member answered."""
    stats: Stats | None = None
    error: BaseException | None = None
    """Why it failed; payload and stats are None then."""
    cause: Cause = "raised"
    """Of an error: the member raised it; the member is gone; or what the call needed was lost with its node."""


class Transport(Protocol):
    """Starts, kills and calls the members of the pools. Nothing here blocks; replies come to the receiver."""

    def receive(self, receiver: Callable[[Reply], None]) -> None:
        """Name who gets the replies, on any thread."""

    def start(self, member: MemberKey, *, avoid: str) -> None:
        """Ask for a new member, on another node than `avoid` if there is room; it is there once it answers `ready`."""

    def send(self, call: Call) -> None:
        """Start a call; its reply comes to the receiver."""

    def kill(self, member: MemberKey, *, dump: bool) -> None:
        """End a member, however stuck it is; `dump` first writes down where its threads stand, if it still can."""

    def draining_nodes(self) -> frozenset[str]:
        """Nodes that are about to go."""

    def unplaced(self) -> Mapping[MemberKey, str]:
        """Members that were asked for, and have no node yet: what each needs and what is free."""

    def fetch(self, ref: Any, timeout_s: float) -> Any:
        """Look into a payload; only for evaluation, never in the training loop."""


class Learner(Protocol):
    """Owner of the trained weights."""

    @property
    def step(self) -> int:
        """Updates done."""

    def weights(self) -> WeightsHandle:
        """The policy as it is now."""

    def prepare(self, chunks: Sequence[ChunkHandle]) -> list[int]:
        """Fetch what the next update needs; returns the positions of the chunks whose payloads are lost."""

    def update(self, settings: RunSettings) -> UpdateReport:
        """Train once on what was prepared, with the settings by which it was collected.

        Raises:
            LearnerLostError: it died, hangs, or its weights are no longer finite.
        """

    def begin_save(self, url: str) -> "Future[ShardFiles]":
        """Copy the state before this returns, and write it in the background."""


class Rollouts(Protocol):
    """Source of judged samples."""

    def publish(self, weights: WeightsHandle) -> None:
        """All that is generated from now on comes from these weights."""

    def collect(self, num_samples: int, settings: RunSettings) -> list[ChunkHandle]:
        """Exactly `num_samples` samples, generated at the settings' temperature, judged and accounted for."""

    def regenerate(self, chunks: Sequence[ChunkHandle], lost: Sequence[int]) -> list[ChunkHandle]:
        """The same samples; those of the chunks at the positions `lost` are generated and judged once more."""

    def account(self, report: UpdateReport) -> None:
        """Book the samples that the update trained on, or dropped."""

    def state_dict(self) -> dict[str, Any]:
        """Prompt cursor and ledger after the last update that was accounted for."""


class Recorder(Protocol):
    """Keeps what an update reports."""

    def record(self, report: UpdateReport) -> None:
        """Write metrics and samples, move the progress bar."""


class Steering(Protocol):
    """What an operator and the guard rails do between two updates."""

    def at(self, step: int) -> RunSettings:
        """The settings of the update that follows; returns once the run is not paused, or not any more.

        Raises:
            RollBack: a guard rail wants to go back to a checkpoint.
            RunStopped: somebody wants the run to end, or a guard rail does.
        """


class Evaluations(Protocol):
    """Looks at the policy on held-out prompts while it learns, and changes nothing of what is trained."""

    def at(self, step: int) -> None:
        """Evaluate the published weights, if this is due after update `step` and not done yet.

        Raises:
            MemberFailedError: the rollout pool cannot go on; names the cause.
            RunStopped: somebody wants the run to end.
        """


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
