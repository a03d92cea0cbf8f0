"""The guard rails of learning: what every update and evaluation measured goes in, alarms and orders come out.

A pure machine: no clock, no file, no run. All it knows follows from metrics.jsonl, evaluations.jsonl and the rollbacks
of steering.json, so that a run that is cut off and goes on has the same alarms, and the report tells them afterwards.

    row ─▶ measure ─▶ beyond its limit ─▶ so many times in a row: alarm raised ─▶ order, at the next boundary
                   └▶ within            ─▶ so many times in a row: alarm cleared

Who feeds it and carries orders out: `deploy/guards/rails.py`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final, Literal, NamedTuple

from common.config import RunConfig
from common.evaluate_config import OverOptimisationConfig
from common.guards_config import Action, GuardsConfig
from common.metric_labels import GUARDS
from deploy.evaluation.over_optimisation import Point, divergence, point_of
from deploy.guards.measures import Baseline, Measure, measure
from deploy.run_folder.evaluation_file import EvaluationLine

Deed = Literal["lower_learning_rate", "roll_back", "stop"]
OF_SAMPLES: Final = frozenset({"kl", "entropy", "repetition", "length"})
"""Guards that look at what was sampled for an update: at the weights that the update before it has made."""
STRONGEST_FIRST: Final[tuple[Deed, ...]] = ("stop", "roll_back", "lower_learning_rate")


@dataclass(frozen=True, slots=True)
class Alarm:
    """A guard that is raised."""

    guard: str
    since_step: int
    """First update in which it was seen."""
    raised_at: int
    """Update after which it was raised."""
    text: str
    """The measure as it was seen last beyond its limit, and the limit."""


class Notice(NamedTuple):
    """An alarm that was raised or cleared after an update."""

    kind: Literal["raised", "cleared"]
    step: int
    alarm: Alarm


@dataclass(frozen=True, slots=True)
class Order:
    """What is to be done before the next update."""

    deed: Deed
    guard: str
    before_step: int
    """First update that went wrong: a checkpoint to go back to is older."""
    text: str


@dataclass(slots=True)
class _Watch:
    """How long one measure has been beyond its limit, or within."""

    guard: str
    action: Action
    patience: int
    beyond: int = 0
    within: int = 0
    since: int = 0
    alarm: Alarm | None = None

    def see(self, step: int, seen: Measure, since: int) -> list[Notice]:
        """One more measurement; `since` is the first update that it is about, if those before were within."""
        if seen.is_beyond:
            self.since = self.since if self.beyond else since
            self.beyond, self.within = self.beyond + 1, 0
            if self.alarm is None and self.beyond >= self.patience:
                self.alarm = Alarm(self.guard, self.since, step, seen.words)
                return [Notice("raised", step, self.alarm)]
            if self.alarm is not None:
                self.alarm = replace(self.alarm, text=seen.words)
            return []
        self.beyond, self.within = 0, self.within + 1
        if self.alarm is None or self.within < self.patience:
            return []
        gone, self.alarm = self.alarm, None
        return [Notice("cleared", step, gone)]


class Guards:
    """All guard rails of a run.

    Args:
        config: the run.
        rolled_back_to: steps of the checkpoints that rollbacks went to, in their order.
    """

    def __init__(self, config: RunConfig, rolled_back_to: Sequence[int] = ()) -> None:
        assert config.ppo is not None, "guard rails are of PPO"
        self._config: GuardsConfig = config.guards
        self._kl = config.ppo.kl
        self._alarm_config = config.evaluate.alarm if config.evaluate is not None else OverOptimisationConfig()
        self._num_rollbacks = len(rolled_back_to)
        self._rolled_back_to = living(rolled_back_to)
        self._baseline = Baseline(config.guards.baseline_updates)
        self._points: list[Point] = []
        self._lowered: list[int] = []
        self._decided = -1
        self._watches = {name: watch for name in GUARDS if (watch := self._watch(name)).action != "off"}

    def _watch(self, guard: str) -> _Watch:
        if guard == "judge_gap":
            return _Watch(guard, self._config.judge_gap.action, self._config.judge_gap.patience_evaluations)
        table = {
            "kl": self._config.kl,
            "entropy": self._config.entropy,
            "clip_fraction": self._config.clip_fraction,
            "repetition": self._config.repetition,
            "length": self._config.length,
        }[guard]
        return _Watch(guard, table.action, table.patience_updates)

    @property
    def alarms(self) -> tuple[Alarm, ...]:
        """Those that are raised."""
        return tuple(watch.alarm for watch in self._watches.values() if watch.alarm is not None)

    def see(self, step: int, metrics: Mapping[str, float | None], kl_target: float | None) -> list[Notice]:
        """One more update.

        Args:
            step: updates done, this one included.
            metrics: by the names of metrics.jsonl; None where a number was not finite.
            kl_target: in force at that update; None: as configured, if there is one.
        """
        self._baseline.add(metrics)
        if kl_target is None and self._kl.type == "adaptive":
            kl_target = self._kl.target
        notices: list[Notice] = []
        for watch in self._watches.values():
            if watch.guard == "judge_gap":
                continue
            seen = measure(
                watch.guard, metrics, config=self._config, kl=self._kl, kl_target=kl_target, baseline=self._baseline
            )
            if seen is not None:
                notices += watch.see(step, seen, step)
        return notices

    def see_evaluation(self, line: EvaluationLine) -> list[Notice]:
        """One more evaluation while PPO learns: its own alarm is what counts, and since when reward and judge part."""
        watch, point, gap = self._watches.get("judge_gap"), point_of(line), line.numbers.get("gap")
        if watch is None or point is None or gap is None:
            return []
        self._points.append(point)
        found = divergence(self._points, self._alarm_config)
        since = line.step if found is None else found.since + 1
        rises = "" if found is None else f" since update {found.since} reward {found.reward_rise:+.2f}, judge "
        rises += "" if found is None else f"{found.judge_rise:+.2f}, in standard deviations;"
        words = f"reward ahead of the judge by {gap:.2f};{rises} (evaluate.alarm)"
        flag = 1.0 if line.over_optimised else 0.0
        return watch.see(line.step, Measure(flag, 0.0, 0.0, words), since)

    def decide(self, step: int) -> Order | None:
        """What is to be done before the update after `step`: the strongest of what the raised alarms want, once.

        A step is decided once. At the checkpoint that a rollback went to nothing is done again: it was, before.
        """
        if step <= self._decided:
            return None
        self._decided = step
        order = self._wanted(step)
        if order is None or step in self._rolled_back_to:
            return None
        if order.deed == "lower_learning_rate":
            self._lowered.append(step)
        return order

    def _wanted(self, step: int) -> Order | None:
        may_act = ("stop",) if self._is_cooling(step) else STRONGEST_FIRST
        orders = [
            self._order(watch.action, watch.alarm)
            for watch in self._watches.values()
            if watch.alarm is not None and watch.beyond > 0 and watch.action in may_act
        ]
        return min(orders, key=lambda order: STRONGEST_FIRST.index(order.deed), default=None)

    def _order(self, action: Action, alarm: Alarm) -> Order:
        about = f"guard {alarm.guard}: {alarm.text}"
        before_step = alarm.since_step - (alarm.guard in OF_SAMPLES)
        done = self._num_rollbacks
        if action == "roll_back" and done < self._config.max_rollbacks:
            return Order("roll_back", alarm.guard, before_step, about)
        if action == "lower_learning_rate":
            return Order(action, alarm.guard, before_step, about)
        if action == "roll_back":
            about += f", after {done} rollbacks (guards.max_rollbacks)"
        return Order("stop", alarm.guard, before_step, about)

    def _is_cooling(self, step: int) -> bool:
        """Whether a rate was lowered, or a checkpoint gone back to, a short while before."""
        last = self._config.cooldown_updates
        return any(before < step <= before + last for before in (*self._lowered, *self._rolled_back_to))


def living(rolled_back_to: Sequence[int]) -> tuple[int, ...]:
    """Rollbacks that no later one went back beyond: of the others, nothing is left among the updates."""
    return tuple(
        step for i, step in enumerate(rolled_back_to) if all(later >= step for later in rolled_back_to[i + 1 :])
    )
