"""The numbers of some runs side by side, and who wins where they answered the same held-out prompts."""

import tomllib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from actors.evaluate import win_rate
from deploy.report.words import NONE, Unit, duration, number
from deploy.run_folder.checked_json import Numbers
from deploy.run_folder.contents import RunFiles, finite, stage_seconds
from deploy.run_folder.evaluation_file import differences


@dataclass(frozen=True, slots=True)
class Row:
    """One line of a table: a label, and a cell for each run."""

    label: str
    cells: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Duel:
    """How often the judge prefers one run's answer to the other's; or why that cannot be said."""

    one: str
    other: str
    rate: float | None = None
    """Share of prompts that `one` wins; a tie counts half."""
    interval: tuple[float, float] | None = None
    """95 %, by the bootstrap over prompts."""
    prompts: int = 0
    steps: tuple[int, int] = (0, 0)
    """Updates behind the two policies."""
    why_not: str = ""


def rows_of(runs: Sequence[RunFiles]) -> Iterator[Row]:
    """The table of numbers: how far the runs are, what they reached, what it cost."""
    yield Row("Updates", tuple(_updates(run) for run in runs))
    yield Row("Trajectories", tuple(_count(trained(run)) for run in runs))
    yield Row("Numbers below", tuple(_source(run) for run in runs))
    ends = [end_of(run) for run in runs]
    for label, key, unit in END_ROWS:
        cells = tuple(number(end.get(key), unit) for end in ends)
        if any(cell != NONE for cell in cells):
            yield Row(label, cells)
    yield Row("Win rate over before PPO", tuple(_rate(end) for end in ends))
    for name in dict.fromkeys(name for run in runs if run.summary for name in run.summary.against):
        yield Row(f"Win rate against {name}", tuple(_against(run, name) for run in runs))
    if any(run.evaluations for run in runs):
        yield Row("Reward ahead of judge, std", tuple(_last(run, "gap") for run in runs))
        yield Row("Over-optimised after", tuple(_alarms(run) for run in runs))
    yield Row("PPO", tuple(duration(stage_seconds(run).get("ppo") or _seconds_so_far(run)) for run in runs))
    yield Row("All stages", tuple(duration(sum(s for s in stage_seconds(run).values() if s) or None) for run in runs))


END_ROWS: tuple[tuple[str, str, Unit], ...] = (
    ("Reward", "reward", "signed"),
    ("Reward before PPO", "reward_before", "signed"),
    ("Rated positive", "p_positive", "percent"),
    ("Rated positive by the judge", "judge_p_positive", "percent"),
    ("… before PPO", "judge_p_positive_before", "percent"),
    ("KL per response, nats", "kl_seq_sum", "number"),
    ("KL per token, nats", "kl_token_mean", "number"),
    ("Response length, tokens", "response_tokens", "number"),
    ("Ended by EOS", "eos_fraction", "percent"),
    ("Distinct words", "distinct_1", "percent"),
    ("Distinct word pairs", "distinct_2", "percent"),
)
"""Label, name in `end_of`, unit."""


def end_of(run: RunFiles) -> dict[str, float | None]:
    """The numbers of the policy at the end: of the evaluation after PPO or, before there is one, the last within."""
    stage = next((stage.metrics for stage in run.stages if stage.stage == "evaluate"), None)
    if stage is not None:
        plain = {key.removesuffix("_after"): value for key, value in stage.items()}
        ends = stage.get("win_rate_ci95")
        low, high = ends if isinstance(ends, list) else (None, None)
        found: dict[str, Any] = {**plain, "win_rate_low": low, "win_rate_high": high}
    elif run.evaluations:
        first, last = run.evaluations[0].numbers, run.evaluations[-1].numbers
        before = {f"{key}_before": first.get(key) for key in ("reward", "judge_p_positive")}
        found = {**last, **(before if run.evaluations[0].step == 0 else {})}
    else:
        found = {}
    return {key: finite(value) for key, value in found.items() if isinstance(value, float | int)}


def trained(run: RunFiles) -> int | None:
    """Trajectories that the policy was trained on."""
    if run.updates:
        count = run.updates[-1].ledger.get("trained")
        return count if isinstance(count, int) else None
    return run.summary.trajectories if run.summary else None


def _updates(run: RunFiles) -> str:
    done = run.updates[-1].step if run.updates else 0
    wanted = tomllib.loads(run.config_text or "").get("ppo", {}).get("updates")
    return f"{done}" if wanted in (None, done) else f"{done} of {wanted}"


def _source(run: RunFiles) -> str:
    if any(stage.stage == "evaluate" for stage in run.stages):
        return "after PPO"
    return f"after update {run.evaluations[-1].step}" if run.evaluations else "no evaluation yet"


def _count(value: int | None) -> str:
    return NONE if value is None else f"{value:,}"


def _rate(end: Numbers) -> str:
    return _percent(end.get("win_rate"), end.get("win_rate_low"), end.get("win_rate_high"))


def _percent(rate: float | None, low: float | None, high: float | None) -> str:
    if rate is None:
        return NONE
    return number(rate, "percent") + (
        f" ({100 * low:.0f}–{100 * high:.0f})" if low is not None and high is not None else ""
    )


def _against(run: RunFiles, name: str) -> str:
    rival = run.summary.against.get(name) if run.summary else None
    return NONE if rival is None else _percent(rival.win_rate, *(rival.win_rate_ci95 or (None, None)))


def _last(run: RunFiles, key: str) -> str:
    return number(run.evaluations[-1].numbers.get(key), "signed") if run.evaluations else NONE


def _alarms(run: RunFiles) -> str:
    if not run.evaluations:
        return NONE
    return ", ".join(str(line.step) for line in run.evaluations if line.over_optimised) or "never"


def _seconds_so_far(run: RunFiles) -> float | None:
    return sum(finite(update.seconds.get("total")) or 0.0 for update in run.updates) or None


# --- who wins


def duels_of(runs: Sequence[RunFiles], names: Sequence[str]) -> Iterator[Duel]:
    """Each later run against the first, at the last evaluations within PPO: only they keep the judge's numbers."""
    for name, run in list(zip(names, runs, strict=True))[1:]:
        yield _duel(name, run, names[0], runs[0])


def _duel(name: str, run: RunFiles, other_name: str, other: RunFiles) -> Duel:
    if not run.evaluations or not other.evaluations:
        return Duel(name, other_name, why_not="evaluate.every_updates was 0 in one of them")
    mine, theirs = run.evaluations[-1], other.evaluations[-1]
    if not mine.asked or not theirs.asked:
        return Duel(name, other_name, why_not="one of them does not say what was asked; use evaluate.against")
    if differing := differences(theirs.asked, mine.asked):
        why_not = f"their evaluations differ in {', '.join(differing)}; use evaluate.against"
        return Duel(name, other_name, why_not=why_not)
    a, b = dict(zip(mine.draws, mine.judged, strict=True)), dict(zip(theirs.draws, theirs.judged, strict=True))
    both = sorted(a.keys() & b.keys())
    if not both:
        return Duel(name, other_name, why_not="no prompt has a score in both")
    rate, interval = win_rate(np.array([b[d] for d in both]), np.array([a[d] for d in both]))
    return Duel(name, other_name, rate, interval, len(both), (mine.step, theirs.step))
