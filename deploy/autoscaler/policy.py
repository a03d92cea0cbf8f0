"""How many rollout workers there shall be: a pure policy. Observations go in, decisions come out.

It knows no pool, no clock and no thread: `deploy/autoscaler/autoscaler.py` feeds it and carries its decisions out,
`deploy/autoscaler/recorded_trace.py` feeds it what a run has recorded.

    good(w)    the learner waits at most scale_up_wait_fraction,   or the fastest w saves at most min_gain_fraction
    surely(w)  the learner waits at most scale_down_wait_fraction, or the fastest w saves at most half of that

Up: to the smallest good number. Down: to the smallest that is surely good, or as fast as now. What is surely good is
good, so where the forecast holds no decision is ever taken back: between the two lies the band in which nothing moves.
Where it does not hold, as with more workers than CPUs, added workers are judged by what came of them.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from common.autoscaler_config import AutoscalerConfig
from deploy.autoscaler.decision import Cause, Decision, State, Trial
from deploy.autoscaler.forecast import Forecast, Observation

REALISED: Final = 0.5
"""Share of the foreseen saving that added workers must bring to stay."""


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
        after = replace(state, target=seen.target, active=seen.active, wishes=(), updates_s=())
        if state.target not in (None, seen.target):
            asked = f"somebody asked for {_workers(seen.target)} where {state.target} were wanted; that stands"
            anew = State(target=seen.target, active=seen.active, changed_s=seen.now_s)
            return anew, _hold(seen, "asked", asked)
        if seen.starting:
            missing = f"{seen.active} of {_workers(seen.target)} take work, {seen.starting} are on their way"
            return after, _hold(seen, "starting", missing)
        if state.active != seen.active or not seen.active:
            return after, _hold(seen, "unsteady", "the number of workers changed during this update")
        return self._steady(state, after, seen)

    def _steady(self, state: State, after: State, seen: Observation) -> tuple[State, Decision]:
        """An update with the same workers from its beginning to its end."""
        updates_s = (*state.updates_s, seen.training_s)[-self.config.confirm_updates :]
        after = replace(after, updates_s=updates_s)
        if state.trial is not None and len(updates_s) == self.config.confirm_updates:
            if (taken_back := self._take_back(after, state.trial, seen)) is not None:
                return taken_back
            after = replace(after, trial=None)
        most = self.most
        if state.ceiling is not None and seen.now_s < state.ceiling_until_s:
            most = min(most, state.ceiling)
        forecast = Forecast.of(seen, self.num_chunks)
        wish = self._wish(forecast, seen.active, most)
        if wish == seen.active:
            return after, _hold(seen, *self._content(forecast, seen, most))
        if wish > seen.active and (objection := self._objection(state, forecast, seen)) is not None:
            return after, _hold(seen, *objection)
        return self._confirm(state, after, forecast, seen, wish)

    def _take_back(self, after: State, trial: Trial, seen: Observation) -> tuple[State, Decision] | None:
        """Away with workers that did not help, once the cool-down is over; None where they did."""
        saved_s = trial.before_s - _mean(after.updates_s)
        target = max(trial.before, self.config.min_workers)
        if saved_s >= REALISED * trial.saving_s or target >= seen.active:
            return None
        reason = (
            f"{_workers(seen.active)} save {max(0.0, saved_s):.3g} s of {trial.before_s:.3g} s over {target}, where "
            f"{trial.saving_s:.3g} s were foreseen; have they CPUs of their own?"
        )
        if (left_s := _left_s(after, seen, self.config.down_cooldown_s)) > 0:
            return replace(after, trial=trial), _hold(seen, "cooldown", f"{reason} They go in {left_s:.0f} s")
        until_s = seen.now_s + self.config.retry_after_s
        changed = replace(after, trial=None, ceiling=target, ceiling_until_s=until_s)
        return _change(changed, seen, target, "vain", reason)

    def _wish(self, forecast: Forecast, active: int, most: int) -> int:
        """The number that this update would have had, had it been asked."""
        config, counts = self.config, range(self.config.min_workers, most + 1)
        now_s = forecast.update_s(active)
        fastest_s = min(now_s, forecast.update_s(most))

        def is_within(workers: int, wait_fraction: float, gain_fraction: float) -> bool:
            is_short = forecast.wait_fraction(workers) <= wait_fraction
            return is_short or forecast.update_s(workers) <= (1 + gain_fraction) * fastest_s

        def is_good(workers: int) -> bool:
            return is_within(workers, config.scale_up_wait_fraction, config.min_gain_fraction)

        def is_surely_good(workers: int) -> bool:
            return is_within(workers, config.scale_down_wait_fraction, config.min_gain_fraction / 2)

        if not is_good(active):
            return next((workers for workers in counts if workers > active and is_good(workers)), active)
        fewer = (workers for workers in counts if workers < active)
        return next((w for w in fewer if is_surely_good(w) or forecast.update_s(w) <= now_s), active)

    def _confirm(
        self, state: State, after: State, forecast: Forecast, seen: Observation, wish: int
    ) -> tuple[State, Decision]:
        """Whether the wish has lasted, and the last change is long enough ago."""
        config, is_up = self.config, wish > seen.active
        earlier = state.wishes if all((one > seen.active) == is_up for one in state.wishes) else ()
        wishes = (*earlier, wish)[-config.confirm_updates :]
        after = replace(after, wishes=wishes)
        reason = _why(forecast, seen, wish)
        if len(wishes) < config.confirm_updates:
            seen_in = f"{len(wishes)} of {config.confirm_updates} updates in a row"
            return after, _hold(seen, "confirming", f"{reason}; seen in {seen_in}")
        if (left_s := _left_s(after, seen, config.up_cooldown_s if is_up else config.down_cooldown_s)) > 0:
            return after, _hold(seen, "cooldown", f"{reason}; the last change is too fresh for {left_s:.0f} s more")
        if is_up:
            target = min(*wishes, seen.active + config.max_step_workers)
            saving_s = forecast.update_s(seen.active) - forecast.update_s(target)
            after = replace(after, trial=Trial(seen.active, _mean(after.updates_s), saving_s))
        else:
            target = max(*wishes, seen.active - config.max_step_workers)
            after = replace(after, trial=None)
        step = "" if target in wishes else f"; a step is of {config.max_step_workers} at most"
        return _change(after, seen, target, "wait" if is_up else "spare", reason + step)

    def _objection(self, state: State, forecast: Forecast, seen: Observation) -> tuple[Cause, str] | None:
        """What speaks against more workers although the learner waits for them."""
        wait_s = _left_s(state, seen, self.config.retry_after_s)
        if seen.active < seen.target and wait_s > 0:
            few = f"{seen.active} of {_workers(seen.target)} take work; the others are given up, not missing"
            return "given_up", f"{few}; they are asked for again in {wait_s:.0f} s"
        if seen.reward_queue_s > forecast.chunk_s:
            return "replicas", (
                f"chunks waited {seen.reward_queue_s:.3g} s on average for a reward replica, longer than a worker "
                f"needs for one ({forecast.chunk_s:.3g} s): add reward replicas, not workers"
            )
        return None

    def _content(self, forecast: Forecast, seen: Observation, most: int) -> tuple[Cause, str]:
        """Why nothing is to be changed."""
        config, waits = self.config, seen.learner_wait_fraction
        said = f"the learner waits {_percent(waits)} of {seen.update_s:.3g} s"
        if waits <= config.scale_up_wait_fraction:
            return "steady", f"{said}, and would wait too long with fewer workers than {seen.active}"
        if seen.active >= most:
            why = f"max_workers={config.max_workers}"
            if most < self.most:
                why = "others were tried, and saved too little"
            elif self.num_chunks < config.max_workers:
                why = f"an update has {self.num_chunks} chunks"
            return "limit", f"{said}; more workers than {seen.active} may not be: {why}"
        if forecast.judge_s >= forecast.collect_s(seen.active) - forecast.rest_s:
            replicas = f"replicas need {forecast.judge_s:.3g} s of it: add reward replicas, not workers"
            return "replicas", f"{said}; {replicas}"
        return "steady", f"{said}, of which more workers would save next to nothing"


def _why(forecast: Forecast, seen: Observation, wish: int) -> str:
    """A wish in numbers."""
    waits, would = seen.learner_wait_fraction, forecast.wait_fraction(wish)
    before = f"the learner waits {_percent(waits)} of {seen.update_s:.3g} s with {_workers(seen.active)}"
    after = f"about {_percent(would)} of {forecast.update_s(wish):.3g} s with {wish}"
    return f"{before}, and would wait {after}"


def _left_s(state: State, seen: Observation, cooldown_s: float) -> float:
    """Seconds for which the last change is too fresh."""
    return 0.0 if state.changed_s is None else state.changed_s + cooldown_s - seen.now_s


def _change(state: State, seen: Observation, target: int, cause: Cause, reason: str) -> tuple[State, Decision]:
    changed = replace(state, target=target, changed_s=seen.now_s, wishes=(), updates_s=())
    return changed, Decision(target, "up" if target > seen.active else "down", cause, reason)


def _hold(seen: Observation, cause: Cause, reason: str) -> Decision:
    return Decision(seen.target, "hold", cause, reason)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)


def _workers(number: int) -> str:
    return f"{number} worker{'' if number == 1 else 's'}"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
