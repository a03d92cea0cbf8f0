"""How many rollout workers there shall be: a pure policy. Observations go in, decisions come out.

It knows no pool, no clock and no thread: `deploy/autoscaler/autoscaler.py` feeds it and carries its decisions out,
`deploy/autoscaler/trace.py` feeds it what a run has recorded.

    good(w)    the learner waits at most scale_up_wait_fraction,   or the fastest w saves at most min_gain_fraction
    surely(w)  the learner waits at most scale_down_wait_fraction, or the fastest w saves at most half of that

Up: to the smallest good number. Down: to the smallest that is surely good, or as fast as now. What is surely good is
good, so on a steady run no decision is ever taken back: between the two lies the band in which nothing moves.
"""

from dataclasses import dataclass, replace
from typing import Literal

from common.autoscaler_config import AutoscalerConfig
from deploy.autoscaler.forecast import Forecast, Observation

Direction = Literal["up", "down", "hold"]
Cause = Literal[
    "asked",
    "starting",
    "unsteady",
    "given_up",
    "replicas",
    "limit",
    "steady",
    "confirming",
    "cooldown",
    "wait",
    "spare",
]
"""`wait` and `spare` change the target, the others hold it."""


@dataclass(frozen=True, slots=True)
class State:
    """What the policy remembers from one observation to the next."""

    target: int | None = None
    """How many it knows to be wanted; another number in an observation is somebody else's order."""
    active: int | None = None
    """Workers at the last observation."""
    changed_s: float | None = None
    """When the target was changed last; None: never."""
    wishes: tuple[int, ...] = ()
    """Numbers that the last updates in a row would have had, all on one side of the present one."""


@dataclass(frozen=True, slots=True)
class Decision:
    """How many workers there shall be, and why."""

    target: int
    direction: Direction
    cause: Cause
    reason: str
    """In words, for event log and status."""


class Policy:
    """Decides; the same observations give the same decisions.

    Args:
        config: bounds, thresholds and times.
        num_chunks: chunks of an update: more workers would have nothing to do.
    """

    def __init__(self, config: AutoscalerConfig, num_chunks: int) -> None:
        self.config = config
        self.num_chunks = num_chunks
        self.most = max(config.min_workers, min(config.max_workers, num_chunks))
        """Workers that it asks for at most."""

    def observe(self, state: State, seen: Observation) -> tuple[State, Decision]:
        """One update is recorded."""
        after = replace(state, target=seen.target, active=seen.active, wishes=())
        if state.target not in (None, seen.target):
            asked = f"somebody asked for {_workers(seen.target)} where {state.target} were wanted; that stands"
            return replace(after, changed_s=seen.now_s), _hold(seen, "asked", asked)
        if seen.starting:
            missing = f"{seen.active} of {_workers(seen.target)} take work, {seen.starting} are on their way"
            return after, _hold(seen, "starting", missing)
        if state.active != seen.active or not seen.active:
            return after, _hold(seen, "unsteady", "the number of workers changed during this update")
        forecast = Forecast.of(seen, self.num_chunks)
        wish = self._wish(forecast, seen.active)
        if wish == seen.active:
            return after, _hold(seen, *self._content(forecast, seen))
        if wish > seen.active and (objection := _objection(forecast, seen)) is not None:
            return after, _hold(seen, *objection)
        return self._confirm(state, after, forecast, seen, wish)

    def _wish(self, forecast: Forecast, active: int) -> int:
        """The number that this update would have had, had it been asked."""
        config, counts = self.config, range(self.config.min_workers, self.most + 1)
        now_s = forecast.update_s(active)
        fastest_s = min(now_s, forecast.update_s(self.most))

        def is_within(workers: int, wait_fraction: float, gain_fraction: float) -> bool:
            is_short = forecast.wait_fraction(workers) <= wait_fraction
            return is_short or forecast.update_s(workers) <= (1 + gain_fraction) * fastest_s

        if not is_within(active, config.scale_up_wait_fraction, config.min_gain_fraction):
            more = (
                workers
                for workers in counts
                if workers > active and is_within(workers, config.scale_up_wait_fraction, config.min_gain_fraction)
            )
            return next(more, active)
        fewer = (
            workers
            for workers in counts
            if workers < active
            and (
                is_within(workers, config.scale_down_wait_fraction, config.min_gain_fraction / 2)
                or forecast.update_s(workers) <= now_s
            )
        )
        return next(fewer, active)

    def _confirm(
        self, state: State, after: State, forecast: Forecast, seen: Observation, wish: int
    ) -> tuple[State, Decision]:
        """Whether the wish has lasted, and the last change is long enough ago."""
        config, is_up = self.config, wish > seen.active
        earlier = state.wishes if all((one > seen.active) == is_up for one in state.wishes) else ()
        wishes = (*earlier, wish)[-config.confirm_updates :]
        after = replace(after, wishes=wishes)
        reason = self._why(forecast, seen, wish)
        if len(wishes) < config.confirm_updates:
            seen_in = f"{len(wishes)} of {config.confirm_updates} updates in a row"
            return after, _hold(seen, "confirming", f"{reason}; seen in {seen_in}")
        cooldown_s = config.up_cooldown_s if is_up else config.down_cooldown_s
        if state.changed_s is not None and (left_s := state.changed_s + cooldown_s - seen.now_s) > 0:
            return after, _hold(seen, "cooldown", f"{reason}; the last change is too fresh for {left_s:.0f} s more")
        if is_up:
            target = min(*wishes, seen.active + config.max_step_workers)
        else:
            target = max(*wishes, seen.active - config.max_step_workers)
        step = "" if target in wishes else f"; a step is of {config.max_step_workers} at most"
        changed = replace(after, target=target, changed_s=seen.now_s, wishes=())
        return changed, Decision(target, "up" if is_up else "down", "wait" if is_up else "spare", reason + step)

    def _why(self, forecast: Forecast, seen: Observation, wish: int) -> str:
        """The wish in numbers."""
        waits, would = seen.learner_wait_fraction, forecast.wait_fraction(wish)
        before = f"the learner waits {_percent(waits)} of {seen.update_s:.3g} s with {_workers(seen.active)}"
        after = f"about {_percent(would)} of {forecast.update_s(wish):.3g} s with {wish}"
        return f"{before}, and would wait {after}"

    def _content(self, forecast: Forecast, seen: Observation) -> tuple[Cause, str]:
        """Why nothing is to be changed."""
        config, waits = self.config, seen.learner_wait_fraction
        said = f"the learner waits {_percent(waits)} of {seen.update_s:.3g} s"
        if waits <= config.scale_up_wait_fraction:
            return "steady", f"{said}, and would wait too long with fewer workers than {seen.active}"
        if seen.active >= self.most:
            why = f"max_workers={config.max_workers}"
            if self.num_chunks < config.max_workers:
                why = f"an update has {self.num_chunks} chunks"
            return "limit", f"{said}; {_workers(seen.active)} are as many as may be: {why}"
        if forecast.judge_s >= forecast.collect_s(seen.active) - forecast.rest_s:
            replicas = f"replicas need {forecast.judge_s:.3g} s of it: add reward replicas, not workers"
            return "replicas", f"{said}; {replicas}"
        return "steady", f"{said}, of which more workers would save next to nothing"


def _objection(forecast: Forecast, seen: Observation) -> tuple[Cause, str] | None:
    """What speaks against more workers although the learner waits for them."""
    if seen.active < seen.target:
        return "given_up", f"{seen.active} of {_workers(seen.target)} take work; the others are given up, not missing"
    if seen.reward_queue_s > forecast.chunk_s:
        return "replicas", (
            f"requests waited up to {seen.reward_queue_s:.3g} s for a reward replica, longer than a worker needs for "
            f"a chunk ({forecast.chunk_s:.3g} s): add reward replicas, not workers"
        )
    return None


def _hold(seen: Observation, cause: Cause, reason: str) -> Decision:
    return Decision(seen.target, "hold", cause, reason)


def _workers(number: int) -> str:
    return f"{number} worker{'' if number == 1 else 's'}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
