"""The files of a run folder, read back and checked: what `deploy.report.report` and `deploy.console` know of a run.

It reads and never writes; who writes is told in each record. Absent files are None or empty here, and said so by the
readers; a file that is there and cannot be understood is an error that names its line.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue, TypeAdapter

from common.errors import DataError
from deploy.ppo.settings_journal import Difference, read_journal
from deploy.run_folder.checked_json import Numbers, Shape, read_json_as, read_jsonl, read_toml
from deploy.run_folder.evaluation_file import EvaluationLine, OverOptimisation, Rival, read_evaluations

Ledger = Mapping[str, int | dict[str, int]]

STAGE_ORDER = ("base", "pretrain", "sft", "reward_model", "judge", "ppo", "evaluate")


class UpdateLine(Shape):
    """One line of `metrics.jsonl`: one PPO update."""

    step: int
    """Updates done, this one included."""
    identity: str = ""
    """Lineage and step of the weights that it made, as in `0.1`."""
    weights_hash: str = ""
    """Of the policy that it made; empty in runs of older versions."""
    settings: Numbers = {}
    """Those that may change at run time, as they were in force; empty in older runs."""
    metrics: Numbers = {}
    """By name; null where a number was not finite."""
    seconds: Numbers = {}
    """`collect`, `update` and its parts are wall time; what workers report is summed over them."""
    ledger: Ledger = {}
    """Samples by fate, from the start of the run."""


class ExtremeLine(Shape):
    """One line of `samples.jsonl`: the best or worst sample of an update."""

    kind: Literal["best", "worst"]
    step: int
    prompt: str
    response: str
    score: float | None = None
    kl_seq_sum: float | None = None


class HeldoutLine(Shape):
    """One line of `samples.jsonl`: a held-out prompt, answered before and after PPO."""

    kind: Literal["heldout"]
    prompt: str
    before: str
    after: str
    score_before: float | None = None
    score_after: float | None = None
    judge_before: float | None = None
    """Probability of the positive class."""
    judge_after: float | None = None


class Histogram(Shape):
    """Counts between edges, one more of these than of those."""

    edges: Sequence[float]
    counts: Sequence[int]


class PreferenceNumbers(Shape):
    """What a classifier that learnt from preferences says of held-out pairs; see learner.preference_measures."""

    accuracy_by_source: Numbers = {}
    heldout_rankings: int | None = None
    heldout_pairs: int | None = None
    calibration_error: float | None = None
    accuracy_shorter: float | None = None
    """On pairs whose preferred response has fewer words; null where there are none."""
    accuracy_longer: float | None = None
    shorter_fraction: float | None = None
    longer_fraction: float | None = None
    score_gap: float | None = None
    """Mean score of the preferred text less that of the other."""
    score_mean: float | None = None
    score_std: float | None = None
    score_quantiles: Numbers = {}
    score_histogram: Histogram | None = None
    length_pearson: float | None = None
    """Correlation of a text's score and its response's words."""
    length_spearman: float | None = None


class Summary(Shape):
    """`summary.json`, written by the last stage; a key is None where its stage was not part of the run."""

    reward_before: float | None = None
    reward_after: float | None = None
    p_positive_before: float | None = None
    p_positive_after: float | None = None
    judge_p_positive_before: float | None = None
    judge_p_positive_after: float | None = None
    kl_seq_sum: float | None = None
    kl_token_mean: float | None = None
    win_rate: float | None = None
    win_rate_ci95: tuple[float, float] | None = None
    distinct_2_before: float | None = None
    distinct_2_after: float | None = None
    sft_perplexity_before: Numbers | None = None
    sft_perplexity_after: Numbers | None = None
    rm_accuracy: float | None = None
    rm_preferences: PreferenceNumbers | None = None
    """There only where the reward model learnt from preferences; `rm_accuracy` is then of pairs."""
    judge_accuracy: float | None = None
    updates: int | None = None
    trajectories: int | None = None
    ledger: Ledger | None = None
    seconds: Numbers | None = None
    tokens_per_second: Numbers | None = None
    against: Mapping[str, Rival] = {}
    """By the name that `evaluate.against` gives them."""
    over_optimisation: OverOptimisation | None = None
    """None where PPO was not evaluated while it learnt."""


class StageFile(Shape):
    """`stages/NAME.json`: what a stage left when it was done."""

    stage: str
    fingerprint: str = ""
    seconds: float | Numbers | None = None
    """In all, or by phase; phases may overlap, so only `total` is taken for the whole."""
    metrics: Mapping[str, JsonValue] = {}


@dataclass(frozen=True, slots=True)
class RunFiles:
    """All that a run folder says."""

    name: str
    folder: Path
    config_text: str | None
    updates: tuple[UpdateLine, ...]
    """In order of steps; where a step was done again after a rewind, the later one."""
    num_redone: int
    """Updates that were done again."""
    extremes: tuple[ExtremeLine, ...]
    heldout: tuple[HeldoutLine, ...]
    evaluations: tuple[EvaluationLine, ...]
    """Of held-out prompts while PPO learnt, in order of steps."""
    changes: tuple[Difference, ...]
    """Of settings while PPO learnt, as far as an update was done with them."""
    summary: Summary | None
    stages: tuple[StageFile, ...]
    """In the order in which stages run."""


def read_run(folder: Path) -> RunFiles:
    """What the files of `folder` say.

    Raises:
        DataError: there is no such folder, or a file cannot be understood; names the file and, where known, the line.
    """
    if not folder.is_dir():
        raise DataError(f"{folder}: not a folder; name the folder of a run, as in runs/demo")
    updates = list(read_jsonl(folder / "metrics.jsonl", TypeAdapter(UpdateLine)))
    by_step = {update.step: update for update in updates}
    samples = list(read_jsonl(folder / "samples.jsonl", TypeAdapter(_Sample)))
    stages = [read_json_as(path, TypeAdapter(StageFile)) for path in sorted((folder / "stages").glob("*.json"))]
    summary_path = folder / "summary.json"
    return RunFiles(
        name=folder.resolve().name,
        folder=folder,
        config_text=read_toml(folder / "config.toml"),
        updates=tuple(by_step[step] for step in sorted(by_step)),
        num_redone=len(updates) - len(by_step),
        extremes=tuple(dict.fromkeys(s for s in samples if isinstance(s, ExtremeLine))),
        heldout=tuple(dict.fromkeys(s for s in samples if isinstance(s, HeldoutLine))),
        evaluations=tuple(read_evaluations(folder)),
        changes=tuple(changes_in_force(folder, last_step=max(by_step, default=0))),
        summary=read_json_as(summary_path, TypeAdapter(Summary)) if summary_path.exists() else None,
        stages=tuple(sorted(stages, key=lambda stage: _rank(stage.stage))),
    )


def changes_in_force(folder: Path, *, last_step: int) -> list[Difference]:
    """What was changed while updates up to `last_step` were done."""
    journal = read_journal(folder)
    return [] if journal is None else journal.differences(before_step=last_step)


def finite(value: float | None) -> float | None:
    """The value, or None where it is absent, NaN or infinite."""
    return value if value is not None and math.isfinite(value) else None


def stage_seconds(run: RunFiles) -> dict[str, float | None]:
    """Wall seconds by stage, in order; None where a stage left no total.

    A stage's own file comes before the summary, since a stage that was skipped as done costs the summary nothing.
    """
    seconds: dict[str, float | None] = dict((run.summary.seconds if run.summary else None) or {})
    for stage in run.stages:
        own = stage.seconds.get("total") if isinstance(stage.seconds, Mapping) else stage.seconds
        seconds[stage.stage] = own if own is not None else seconds.get(stage.stage)
    return {name: finite(seconds[name]) for name in sorted(seconds, key=_rank)}


def final_ledger(run: RunFiles) -> dict[str, int]:
    """Samples by fate at the end of the run; reasons for dropping are spelt `dropped: why`."""
    ledger = (run.summary.ledger if run.summary else None) or (run.updates[-1].ledger if run.updates else {})
    flat: dict[str, int] = {}
    for fate, count in ledger.items():
        if isinstance(count, int):
            flat[fate] = count
        else:
            flat |= {f"{fate}: {why}": n for why, n in count.items()} or {fate: 0}
    return flat


_Sample = Annotated[ExtremeLine | HeldoutLine, Field(discriminator="kind")]


def _rank(stage: str) -> tuple[int, str]:
    return (STAGE_ORDER.index(stage) if stage in STAGE_ORDER else len(STAGE_ORDER), stage)
