"""The files of a run folder, read back and checked: what `deploy.report` and `deploy.console` know of a run.

It reads and never writes; who writes is told in each record. Absent files are None or empty here, and said so by the
readers; a file that is there and cannot be understood is an error that names its line.
"""

import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError

from common.errors import DataError

Numbers = Mapping[str, float | None]
Ledger = Mapping[str, int | dict[str, int]]
Record = TypeVar("Record")

STAGE_ORDER = ("base", "pretrain", "sft", "reward_model", "judge", "ppo", "evaluate")


class _Shape(BaseModel):
    """Keys that are not known are left out, so that an older page can show a newer run."""

    model_config = ConfigDict(frozen=True, extra="ignore", use_attribute_docstrings=True)


class UpdateLine(_Shape):
    """One line of `metrics.jsonl`: one PPO update."""

    step: int
    """Updates done, this one included."""
    identity: str = ""
    """Lineage and step of the weights that it made, as in `0.1`."""
    metrics: Numbers = {}
    """By name; null where a number was not finite."""
    seconds: Numbers = {}
    """`collect`, `update` and its parts are wall time; what workers report is summed over them."""
    ledger: Ledger = {}
    """Samples by fate, from the start of the run."""


class ExtremeLine(_Shape):
    """One line of `samples.jsonl`: the best or worst sample of an update."""

    kind: Literal["best", "worst"]
    step: int
    prompt: str
    response: str
    score: float | None = None
    kl_seq_sum: float | None = None


class HeldoutLine(_Shape):
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


class Histogram(_Shape):
    """Counts between edges, one more of these than of those."""

    edges: Sequence[float]
    counts: Sequence[int]


class PreferenceNumbers(_Shape):
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


class Summary(_Shape):
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


class StageFile(_Shape):
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
    updates = list(_jsonl(folder / "metrics.jsonl", TypeAdapter(UpdateLine)))
    by_step = {update.step: update for update in updates}
    samples = list(_jsonl(folder / "samples.jsonl", TypeAdapter(_Sample)))
    stages = [_json(path, TypeAdapter(StageFile)) for path in sorted((folder / "stages").glob("*.json"))]
    summary_path = folder / "summary.json"
    return RunFiles(
        name=folder.resolve().name,
        folder=folder,
        config_text=_toml(folder / "config.toml"),
        updates=tuple(by_step[step] for step in sorted(by_step)),
        num_redone=len(updates) - len(by_step),
        extremes=tuple(dict.fromkeys(s for s in samples if isinstance(s, ExtremeLine))),
        heldout=tuple(dict.fromkeys(s for s in samples if isinstance(s, HeldoutLine))),
        summary=_json(summary_path, TypeAdapter(Summary)) if summary_path.exists() else None,
        stages=tuple(sorted(stages, key=lambda stage: _rank(stage.stage))),
    )


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


def _jsonl(path: Path, adapter: TypeAdapter[Record]) -> Iterator[Record]:
    for number, line in enumerate(_text(path).split("\n") if path.exists() else [], start=1):
        if line.strip():
            yield _parse(line, adapter, path, first_line=number)


def _json(path: Path, adapter: TypeAdapter[Record]) -> Record:
    return _parse(_text(path), adapter, path, first_line=1)


def _parse(text: str, adapter: TypeAdapter[Record], path: Path, *, first_line: int) -> Record:
    try:
        loaded = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{first_line + error.lineno - 1}: not JSON: {error.msg} at column {error.colno}; "
            "was the run stopped while writing? Delete the line, or run the stage again"
        ) from error
    try:
        return adapter.validate_python(loaded)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        line = first_line + _line_of(first["loc"], text)
        where = ".".join(str(part) for part in first["loc"]) or "the line"
        raise DataError(f"{path}:{line}: {where}: {first['msg']}; got {_short(first['input'])}") from error


def _line_of(location: Sequence[int | str], text: str) -> int:
    """Index of the line in which the first key of `location` that the text holds is written, else 0."""
    for key in reversed(location):
        at = text.find(f'"{key}"')
        if at >= 0:
            return text.count("\n", 0, at)
    return 0


def _short(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= 80 else f"{shown[:77]}..."


def _toml(path: Path) -> str | None:
    if not path.exists():
        return None
    text = _text(path)
    try:
        tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        _, _, after = str(error).partition("at line ")
        line = after.split(",")[0] if after else str(text.count("\n") + 1)
        raise DataError(f"{path}:{line}: not TOML: {error}") from error
    return text


def _text(path: Path) -> str:
    data = path.read_bytes()
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}:{line}: not UTF-8: {error.reason} at byte {error.start}") from error
