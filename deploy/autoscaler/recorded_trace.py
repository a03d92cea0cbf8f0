"""What the policy would have seen in a run that is recorded: its run folder to observations, and these to decisions.

Times are those of metrics.jsonl; who was active, those of events.jsonl. How long requests waited for replicas is in
neither: it is 0 here. The observations are of the workers that there were, whatever the policy says on the way, so a
trace tells what it would have done next, not how the run would have gone on.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import TypeAdapter

from common.autoscaler_config import AutoscalerConfig
from common.config_file import load_config
from common.errors import DataError
from common.metric_labels import PHASES
from deploy.autoscaler.decision import Decision, State
from deploy.autoscaler.forecast import Observation, rounds_of
from deploy.autoscaler.policy import Policy
from deploy.ppo.pulse import MIN_UPDATE_S
from deploy.run_folder.checked_json import Shape, read_jsonl

GONE: Final = frozenset({"drain", "restart", "lost", "given_up"})
"""Events after which a member takes no work."""


class _Update(Shape):
    time: datetime
    step: int
    seconds: dict[str, float]


class _Event(Shape):
    time: datetime
    event: str
    slot: str = ""


@dataclass(frozen=True, slots=True)
class Trace:
    """A run as the policy sees it."""

    num_chunks: int
    """Of an update."""
    observations: tuple[Observation, ...]


def read_trace(folder: Path) -> Trace:
    """The trace of a run folder.

    Raises:
        DataError: it has no updates of PPO, or a file cannot be understood.
    """
    config = load_config(folder / "config.toml")
    updates = list(read_jsonl(folder / "metrics.jsonl", TypeAdapter(_Update)))
    events = list(read_jsonl(folder / "events.jsonl", TypeAdapter(_Event)))
    if config.ppo is None or not updates:
        raise DataError(f"{folder} has no updates in metrics.jsonl; name the folder of a run whose PPO has begun")
    num_chunks = rounds_of(config.ppo.trajectories_per_update, config.rollout.chunk_sequences)
    return Trace(num_chunks, tuple(_observations(updates, events)))


def decisions(config: AutoscalerConfig, trace: Trace) -> Iterator[tuple[Observation, Decision]]:
    """What the policy says of each observation, and would say of the next if nobody had listened."""
    policy, state = Policy(config, trace.num_chunks), State()
    for seen in trace.observations:
        state, decision = policy.observe(state, seen)
        if decision.direction != "hold":
            state = replace(state, target=seen.target, trial=None)  # the run went on without it
        yield seen, decision


def _observations(updates: Iterable[_Update], events: Sequence[_Event]) -> Iterator[Observation]:
    first: datetime | None = None
    for update in updates:
        first = first or update.time
        active = _active(event for event in events if event.time <= update.time)
        seconds = update.seconds
        update_s = max(seconds["total"] - seconds.get("paused", 0.0), MIN_UPDATE_S)

        def share(part_s: float, members: int = 1, whole_s: float = update_s) -> float:
            return min(1.0, part_s / (whole_s * members)) if members else 0.0

        workers, replicas = (sum(slot.startswith(name) for slot in active) for name in ("worker-", "replica-"))
        yield Observation(
            now_s=(update.time - first).total_seconds(),
            step=update.step,
            update_s=update_s,
            learner_wait_fraction=share(seconds.get("collect", 0.0)),
            evaluate_fraction=share(seconds.get("evaluate", 0.0)),
            worker_busy_fraction=share(sum(seconds.get(phase, 0.0) for phase in PHASES["rollout"]), workers),
            reward_busy_fraction=share(sum(seconds.get(phase, 0.0) for phase in PHASES["reward"]), replicas),
            reward_queue_s=0.0,
            active=workers,
            starting=0,
            target=workers,
        )


def _active(events: Iterable[_Event]) -> set[str]:
    """Slots that take work after these events."""
    active: set[str] = set()
    for event in events:
        if event.event == "active":
            active.add(event.slot)
        elif event.event in GONE:
            active.discard(event.slot)
    return active
