"""How fast a run is and who waits for whom: what status shows beside the pools themselves.

    supervisor ── calls that are answered, who is active, weights that are published ──▶ ┌───────┐
    recorder   ── each update, and where its time went ────────────────────────────────▶ │ Pulse │ ──▶ status, metrics
                                                                                         └───────┘
Pure bookkeeping: time comes in as an argument. Safe to use from several threads.
"""

import math
import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from common.pool_actions import Done
from common.records import Identity, UpdateReport

LEARNER_PHASES = ("update", "publish", "snapshot")
"""Of the loop, in which the learner works."""
MIN_UPDATE_S = 1e-9
"""What an update takes at least, so that shares of it can be taken."""
PUBLISHED_KEPT = 64
"""Times of publishing that are remembered; a member that holds older weights has no age any more."""


@dataclass(frozen=True, slots=True)
class Cycle:
    """The time from one update to the next: collecting, training, publishing."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    """Those of the update that are finite."""
    update_s: float = 0.0
    """Without pauses."""
    tokens_per_s: float = 0.0
    """Response tokens trained on per second of it."""
    learner_wait: float = 0.0
    """Share in which the learner waited for samples."""
    evaluate: float = 0.0
    """Share in which held-out prompts were answered."""
    score_queued_s: float = 0.0
    """How long a chunk waited for a reward replica with room, mean over its chunks."""
    busy: Mapping[str, float] = field(default_factory=dict)
    """By role, the share in which it worked; of pools the mean over active members."""
    busy_of_slot: Mapping[str, float] = field(default_factory=dict)
    """By slot."""


class Pulse:
    """What is known of speed and waiting."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy_s: dict[str, float] = {}
        """By slot, since the last update."""
        self._working_s: dict[str, float] = {}
        """By slot, at the work that is not answered yet, when that was looked at."""
        self._counted_s: dict[str, float] = {}
        """By slot, seconds of that work that were counted in earlier updates: where generation runs ahead of learning a
        call may last longer than an update."""
        self._score_queued_s: list[float] = []
        """By chunk, since the last update."""
        self._tokens_per_s: dict[str, float] = {}
        """By slot, in its last call."""
        self._active: dict[str, tuple[str, ...]] = {}
        self._published: dict[Identity, float] = {}
        self._cycle: Cycle | None = None

    # --- told by the supervisor

    def answered(self, done: Done) -> None:
        """A member has worked."""
        seconds = sum(done.stats.seconds.values())
        with self._lock:
            left_s = max(0.0, seconds - self._counted_s.pop(done.slot, 0.0))
            self._busy_s[done.slot] = self._busy_s.get(done.slot, 0.0) + left_s
            self._working_s.pop(done.slot, None)
            if done.method == "score":
                self._score_queued_s.append(done.queued_s)
            generating = done.stats.seconds.get("generate", 0.0)
            if generating > 0:
                self._tokens_per_s[done.slot] = done.stats.response_tokens / generating

    def began(self, slot: str) -> None:
        """Another process takes the slot: the speed of the one before is not its own."""
        with self._lock:
            self._tokens_per_s.pop(slot, None)
            self._forget_work(slot)

    def looked(self, active: Mapping[str, Iterable[str]], working_s: Mapping[str, float]) -> None:
        """Who takes work now, by role, and for how long each slot has been at the work that it is at."""
        with self._lock:
            self._active = {role: tuple(slots) for role, slots in active.items()}
            self._working_s = dict(working_s)

    def published(self, identity: Identity, now: float) -> None:
        """Weights are published."""
        with self._lock:
            self._published.pop(identity, None)  # published once more, as after an evaluation of others: the newest
            self._published[identity] = now
            while len(self._published) > PUBLISHED_KEPT:
                del self._published[next(iter(self._published))]

    def departed(self, slot: str) -> None:
        """A slot is gone."""
        with self._lock:
            self._busy_s.pop(slot, None)
            self._tokens_per_s.pop(slot, None)
            self._forget_work(slot)

    # --- told by the recorder

    def updated(self, report: UpdateReport, seconds: Mapping[str, float]) -> Cycle:
        """An update is done; `seconds` by phase of the loop since the one before, `total` among them."""
        paused_s = seconds.get("paused", 0.0)
        update_s = max(seconds["total"] - paused_s, MIN_UPDATE_S)

        def share(part_s: float) -> float:
            return min(1.0, max(0.0, part_s / update_s))

        with self._lock:
            busy_s = self._take_busy_s()
            score_queued_s, self._score_queued_s = self._score_queued_s, []
            of_slot = {slot: share(busy_s.get(slot, 0.0)) for slots in self._active.values() for slot in slots}
            busy = {role: _mean([of_slot[slot] for slot in slots]) for role, slots in self._active.items() if slots}
            busy["learner"] = share(sum(seconds.get(phase, 0.0) for phase in LEARNER_PHASES))
            self._cycle = Cycle(
                metrics={name: value for name, value in report.metrics.items() if math.isfinite(value)},
                update_s=update_s,
                tokens_per_s=report.metrics.get("response_tokens", 0.0) / update_s,
                learner_wait=share(seconds.get("collect", 0.0)),
                evaluate=share(seconds.get("evaluate", 0.0)),
                score_queued_s=_mean(score_queued_s or [0.0]),
                busy=busy,
                busy_of_slot=of_slot,
            )
            return self._cycle

    def _take_busy_s(self) -> dict[str, float]:
        """Seconds since the last update, of work that goes on too."""
        busy_s, self._busy_s = self._busy_s, {}
        for slot, seconds in self._working_s.items():
            busy_s[slot] = busy_s.get(slot, 0.0) + max(0.0, seconds - self._counted_s.get(slot, 0.0))
            self._counted_s[slot] = seconds
        return busy_s

    def _forget_work(self, slot: str) -> None:
        self._working_s.pop(slot, None)
        self._counted_s.pop(slot, None)

    # --- asked

    @property
    def cycle(self) -> Cycle | None:
        """The last update's; None before the first."""
        return self._cycle

    def tokens_per_s(self, slot: str) -> float | None:
        """Response tokens that a worker generated per second of its last call."""
        return self._tokens_per_s.get(slot)

    def weights_age_s(self, identity: Identity, now: float) -> float | None:
        """Seconds since these weights were published, as far as it is remembered."""
        at = self._published.get(identity)
        return None if at is None else max(0.0, now - at)

    def weights_lag(self, identity: Identity) -> int | None:
        """Updates by which these weights are behind those that were published last; never below 0."""
        with self._lock:
            newest = next(reversed(self._published), None)
        return None if newest is None else max(0, newest.step - identity.step)


def _mean(shares: Sequence[float]) -> float:
    return sum(shares) / len(shares)
