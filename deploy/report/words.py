"""What the numbers of a run mean, in plain words: shared by the page and the terminal, so that both say the same.

No drawing and no files: records of `deploy.run_folder.contents` go in, text and `Measure`s come out.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from deploy.run_folder.contents import RunFiles, StageFile, Summary, final_ledger, finite

Good = Literal["higher", "lower", "hold", "win", "zero"]
Unit = Literal["percent", "number", "signed"]

MAX_ALARMS = 8
"""Updates that are named in a sentence."""
NONE, MINUS = "–", "−"
KEEPS_DIVERSITY = 0.7
"""Least share of the former distinct-2 that counts as kept."""
GOOD_ARROWS: dict[Good, str] = {"higher": "↑", "lower": "↓", "hold": "→", "win": "↑", "zero": "→"}
VERDICT_MARKS = {"better": "✓ ", "worse": "✗ ", "same": "", "": ""}
GOOD_WORDS: dict[Good, str] = {
    "higher": "higher is better",
    "lower": "lower is better",
    "hold": "should hold",
    "win": "above 50 % is better",
    "zero": "near 0 is better",
}


@dataclass(frozen=True, slots=True)
class Measure:
    """One row of the before/after table."""

    label: str
    unit: Unit
    good: Good
    explanation: str
    stage: str
    """Which stage measures it: a key of `report_absences.WHY_ABSENT`."""
    before: float | None = None
    after: float | None = None
    has_before: bool = True
    """False for what only exists after PPO, as the distance from where it began."""
    interval: tuple[float, float] | None = None

    @property
    def is_absent(self) -> bool:
        """Whether the run recorded nothing of it."""
        return self.after is None and self.before is None

    @property
    def before_text(self) -> str:
        """The value before, or a dash."""
        return number(self.before, self.unit)

    @property
    def after_text(self) -> str:
        """The value after, or a dash."""
        return number(self.after, self.unit)

    @property
    def change_text(self) -> str:
        """The change, in the row's own unit; for a win rate its 95 % interval; empty where there is nothing to say."""
        if self.interval:
            return "{:.1f}–{:.1f} %".format(*(100 * bound for bound in self.interval))
        if self.before is None or self.after is None:
            return ""
        if self.good == "hold":
            return f"× {self.after / self.before:.2f}" if self.before else ""
        change = self.after - self.before
        if self.unit == "percent":
            return _signed(100 * change, 1) + " points"
        return _signed(change, 1 if abs(change) >= 10 else 2)

    @property
    def verdict(self) -> Literal["better", "worse", "same", ""]:
        """What became of it; empty where there is nothing to compare with."""
        if self.good == "win" and self.after is not None:
            low, high = self.interval or (self.after, self.after)
            return "better" if low > 0.5 else "worse" if high < 0.5 else "same"
        if self.before is None or self.after is None:
            return ""
        if self.good == "hold":
            return "same" if self.after >= KEEPS_DIVERSITY * self.before else "worse"
        gain = self.after - self.before if self.good == "higher" else self.before - self.after
        return "better" if gain > 0 else "worse" if gain < 0 else "same"


def number(value: float | None, unit: Unit = "number") -> str:
    """The value with its unit, or a dash where it is absent or not finite."""
    shown = finite(value)
    if shown is None:
        return NONE
    match unit:
        case "percent":
            return f"{100 * shown:.1f} %"
        case "signed":
            return _signed(shown, 2)
        case "number":
            return (f"{shown:.1f}" if abs(shown) >= 10 else f"{shown:.3f}").replace("-", MINUS)


def _signed(value: float, decimals: int) -> str:
    return f"{value:+.{decimals}f}".replace("-", MINUS)


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: `4.2 s`, `3 min 07 s`; a dash where not known."""
    if seconds is None:
        return NONE
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min" if hours else f"{minutes} min {rest:02d} s"


def measures(summary: Summary | None) -> list[Measure]:
    """The rows of the before/after table, absent ones included."""
    s = summary or Summary()
    return [*_gains(s), *_rivals(s), *_prices(s), *_perplexities(s), *_accuracies(s)]


def _gains(s: Summary) -> list[Measure]:
    return [
        Measure(
            "Reward", "signed", "higher",
            "Mean score of the responses: what PPO maximises. By the reward model alone it is a logit, 0 is undecided.",
            "evaluate", s.reward_before, s.reward_after,
        ),
        Measure(
            "Rated positive", "percent", "higher",
            "Mean probability of “positive”, by the reward model: its logit on a scale from 0 to 100 %.",
            "scorers" if s.reward_after is not None else "evaluate", s.p_positive_before, s.p_positive_after,
        ),
        Measure(
            "Rated positive by the judge", "percent", "higher",
            "The same by another classifier that PPO never saw. If this stays behind, the policy has learnt to please "
            "the reward model rather than to be positive.",
            "judge", s.judge_p_positive_before, s.judge_p_positive_after,
        ),
        Measure(
            "Win rate", "percent", "win",
            "How often the judge prefers the response after PPO to the one before, on the same prompt; "
            "beside it the 95 % interval.",
            "judge", None, s.win_rate, has_before=False, interval=s.win_rate_ci95,
        ),
    ]  # fmt: skip


def _rivals(s: Summary) -> list[Measure]:
    return [
        Measure(
            f"Win rate against {name}", "percent", "win",
            "How often the judge prefers this run's response after PPO to the other policy's, on the same prompt; "
            "beside it the 95 % interval.",
            "judge", None, rival.win_rate, has_before=False, interval=rival.win_rate_ci95,
        )
        for name, rival in s.against.items()
    ]  # fmt: skip


def alarm_sentence(summary: Summary | None) -> str:
    """What the over-optimisation alarm said while PPO learnt; nothing where it was silent, or not there."""
    alarm = None if summary is None else summary.over_optimisation
    if alarm is None or not alarm.updates:
        return ""
    steps = ", ".join(str(step) for step in alarm.updates[:MAX_ALARMS])
    steps += ", …" if len(alarm.updates) > MAX_ALARMS else ""
    end = "It is on at the end" if alarm.at_the_end else "It is off at the end"
    gap = f", where the reward is {number(alarm.gap, 'signed')} standard deviations ahead of the judge"
    return (
        f"Over-optimisation: after update {steps} the reward had risen on held-out prompts without the judge. "
        f"{end}{gap}. Read the texts before you trust the reward."
    )


def _prices(s: Summary) -> list[Measure]:
    return [
        Measure(
            "Distinct word pairs", "percent", "hold",
            "Different word pairs as a share of all word pairs in the responses (distinct-2). "
            f"Below {KEEPS_DIVERSITY} of what it was, the policy repeats itself.",
            "evaluate", s.distinct_2_before, s.distinct_2_after,
        ),
        Measure(
            "KL per token, nats", "number", "lower",
            "How far the policy has moved from where it began: the price of the reward. 0 before PPO; "
            "0.7 means that it finds its tokens on average twice as likely as the old model does.",
            "evaluate", None, s.kl_token_mean, has_before=False,
        ),
        Measure(
            "KL per response, nats", "number", "lower",
            "The same, summed over a response.",
            "evaluate", None, s.kl_seq_sum, has_before=False,
        ),
    ]  # fmt: skip


def _accuracies(s: Summary) -> list[Measure]:
    return [
        Measure(
            "Reward model accuracy", "percent", "higher",
            "Share of held-out reviews whose label it gets right: no reward is better than its measure."
            if s.rm_preferences is None
            else "Share of held-out pairs of which it scores the preferred text higher.",
            "reward_model", None, s.rm_accuracy, has_before=False,
        ),
        Measure(
            "Judge accuracy", "percent", "higher",
            "The same for the judge, which learnt from other reviews.",
            "judge", None, s.judge_accuracy, has_before=False,
        ),
    ]  # fmt: skip


def _perplexities(s: Summary) -> list[Measure]:
    before, after = s.sft_perplexity_before or {}, s.sft_perplexity_after or {}
    explanation = (
        "How many tokens the language model hesitates between, on held-out reviews, before and after supervised "
        "fine-tuning (SFT), which comes before PPO. Where it rises, the model forgets."
    )
    rows: list[Measure] = []
    for source in dict.fromkeys([*before, *after]):
        told = f"The same on {source}." if rows else explanation
        rows.append(
            Measure(f"SFT perplexity, {source}", "number", "lower", told, "sft", before.get(source), after.get(source))
        )
    return rows or [Measure("SFT perplexity", "number", "lower", explanation, "sft")]


def result_sentence(run: RunFiles, why: Mapping[str, str]) -> str:
    """The result in one plain sentence, from whatever is recorded; `why` something is absent, by stage."""
    s = run.summary or Summary()
    updates = s.updates if s.updates is not None else len(run.updates)
    samples = s.trajectories if s.trajectories is not None else final_ledger(run).get("trained")
    done = f"After {updates:,} update{'' if updates == 1 else 's'}"
    done += f" on {samples:,} samples" if samples else ""
    parts: list[str] = []
    if finite(s.p_positive_after) is not None:
        parts.append(f"responses to held-out prompts are rated {_rated(s.p_positive_before, s.p_positive_after)}")
    if finite(s.judge_p_positive_after) is not None:
        parts.append(f"an independent judge says {_percents(s.judge_p_positive_before, s.judge_p_positive_after)}")
    if finite(s.kl_token_mean) is not None:
        parts.append(f"KL {s.kl_token_mean:.2f} nats per token")
    if not parts and not updates:
        return "PPO has made no update; what each stage measured is below."
    if not parts:
        return f"{done} there is no result to tell: {why['evaluate']}."
    return f"{done}, {'; '.join(parts)}."


def _rated(before: float | None, after: float | None) -> str:
    percents = _percents(before, after)
    return percents.replace(" %", " % positive", 1)


def _percents(before: float | None, after: float | None) -> str:
    was = finite(before)
    return f"{100 * (after or 0):.0f} %" + (f" (before: {100 * was:.0f} %)" if was is not None else "")


def gap_between(prompt: str, response: str) -> str:
    """What stands between a prompt and a response that were decoded apart: a space, unless one is there or unwanted."""
    if not prompt or not response or prompt[-1].isspace() or response[0].isspace():
        return ""
    return "" if response[0] in ".,;:!?)'’%" else " "


def stage_numbers(stage: StageFile) -> dict[str, str]:
    """A stage's single numbers and words by dotted name; lists, as of losses, are left out."""
    flat: dict[str, str] = {}

    def walk(name: str, value: object) -> None:
        match value:
            case dict():
                for key, inner in value.items():
                    walk(f"{name}.{key}" if name else str(key), inner)
            case bool() | str() | int():
                flat[name] = f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)
            case float():
                flat[name] = NONE if finite(value) is None else f"{value:.4g}"

    walk("", dict(stage.metrics))
    return flat
