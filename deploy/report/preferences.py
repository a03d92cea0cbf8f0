"""What a reward model that learnt from preferences says of held-out pairs: for page, terminal and pipeline."""

from dataclasses import dataclass
from typing import Any

from deploy.report.words import Measure, number
from deploy.run_folder.contents import PreferenceNumbers, Summary, finite

LENGTH_BIAS = 0.3
"""A correlation of score and length beyond this, up or down, is warned of."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One bin of the histogram of scores."""

    height_percent: float
    """Of the highest."""
    title: str
    """Bounds and count."""


@dataclass(frozen=True, slots=True)
class Scores:
    """The distribution of held-out scores as the page shows it."""

    bars: tuple[Bar, ...]
    low: str
    high: str
    numbers: dict[str, str]
    """By name."""


def preference_measures(summary: Summary | None) -> list[Measure]:
    """Rows of the table beside the accuracy; none where the reward model learnt from labels."""
    numbers = summary.rm_preferences if summary is not None else None
    if numbers is None:
        return []
    rows = [
        Measure(
            "Reward model calibration error", "percent", "lower",
            "How far the chances that it gives to held-out pairs are from how often it is right.",
            "reward_model", None, numbers.calibration_error, has_before=False,
        ),
        Measure(
            "Score and length", "signed", "zero",
            "Rank correlation of the reward model's score with a response's words, on held-out texts. "
            f"Beyond {LENGTH_BIAS}, PPO learns to write longer, or shorter, rather than better.",
            "reward_model", None, numbers.length_spearman, has_before=False,
        ),
        Measure(
            "Accuracy, shorter preferred", "percent", "higher",
            "On held-out pairs whose preferred response is the shorter one.",
            "reward_model", None, numbers.accuracy_shorter, has_before=False,
        ),
        Measure(
            "Accuracy, longer preferred", "percent", "higher",
            "Where it is the longer one: far above the row before, the model takes length for quality.",
            "reward_model", None, numbers.accuracy_longer, has_before=False,
        ),
    ]  # fmt: skip
    return [row for row in rows if not row.is_absent]


def length_warning(numbers: PreferenceNumbers | None) -> str | None:
    """A sentence where the score follows length, else None."""
    if numbers is None:
        return None
    found = [finite(value) or 0.0 for value in (numbers.length_spearman, numbers.length_pearson)]
    worst = max(found, key=abs)
    if abs(worst) <= LENGTH_BIAS:
        return None
    way = "longer" if worst > 0 else "shorter"
    return (
        f"The reward model's score goes with length: correlation {number(worst, 'signed')} on held-out texts. PPO "
        f"would learn to write {way} responses rather than better ones; see docs/reward-model.md."
    )


def scores_shown(summary: Summary | None) -> Scores | None:
    """The histogram of held-out scores; None where there is none."""
    numbers = summary.rm_preferences if summary is not None else None
    if numbers is None or numbers.score_histogram is None:
        return None
    edges, counts = numbers.score_histogram.edges, numbers.score_histogram.counts
    highest = max([*counts, 1])
    bars = tuple(
        Bar(round(100 * count / highest, 1), f"{number(low, 'signed')} to {number(high, 'signed')}: {count:,}")
        for low, high, count in zip(edges[:-1], edges[1:], counts, strict=True)
    )
    stated = {"mean": numbers.score_mean, "standard deviation": numbers.score_std, "gap in a pair": numbers.score_gap}
    quantiles = {f"{float(q):.0%} below".replace("%", " %"): value for q, value in numbers.score_quantiles.items()}
    return Scores(
        bars,
        number(edges[0], "signed"),
        number(edges[-1], "signed"),
        {name: number(value, "signed") for name, value in {**stated, **quantiles}.items()},
    )


def preference_numbers(metrics: dict[str, Any]) -> PreferenceNumbers | None:
    """Of a classifier's stage; None where it did not learn from preferences."""
    return PreferenceNumbers.model_validate(metrics) if "heldout_pairs" in metrics else None
