"""Runs side by side, from the files of their folders and nothing else: settings that differ, numbers, texts.

    run folders ─▶ run_files ─▶ Comparison ─┬▶ compare_view: tables of the terminal
                                            └▶ compare_page: compare.html, with the curves of compare_curves

Works on runs that are not finished: numbers of the end then come from the last evaluation while PPO learns, and say so.
"""

import json
import tomllib
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.errors import DataError
from deploy.compare.figures import Duel, Row, duels_of, rows_of
from deploy.report.words import NONE
from deploy.run_folder.contents import RunFiles, read_run

NOT_COMPARED = frozenset({"name", "control.port"})
"""Settings that differ between any two runs, and say nothing."""


@dataclass(frozen=True, slots=True)
class Said:
    """What a run answered to a held-out prompt."""

    response: str
    score: float | None
    judge: float | None


@dataclass(frozen=True, slots=True)
class Comparison:
    """All that is shown of some runs."""

    runs: tuple[RunFiles, ...]
    names: tuple[str, ...]
    """As shown; no two are equal."""
    settings: tuple[Row, ...]
    numbers: tuple[Row, ...]
    duels: tuple[Duel, ...]
    texts: tuple[tuple[str, tuple[Said | None, ...]], ...]
    """Held-out prompts, and what each run answered; None where it was not asked or the text was not kept."""
    without_config: tuple[str, ...]
    """Runs whose settings are not known."""


def compare_runs(folders: Sequence[Path]) -> Comparison:
    """Read the folders and lay them side by side.

    Raises:
        DataError: there are fewer than two; one is no folder of a run; or one of its files is malformed.
    """
    if len(folders) < 2:
        raise DataError(f"got {len(folders)} run to compare; name two or more, as in `minichatgpt compare demo other`")
    runs = tuple(_read(folder) for folder in folders)
    names = _names(runs)
    return Comparison(
        runs=runs,
        names=names,
        settings=tuple(_settings(runs)),
        numbers=tuple(rows_of(runs)),
        duels=tuple(duels_of(runs, names)),
        texts=tuple(_texts(runs)),
        without_config=tuple(name for name, run in zip(names, runs, strict=True) if run.config_text is None),
    )


def _read(folder: Path) -> RunFiles:
    run = read_run(folder)
    if run.config_text is None and not run.updates and not run.stages and run.summary is None:
        there = ", ".join(sorted(path.name for path in folder.iterdir())[:8]) or "nothing"
        raise DataError(
            f"{folder} is no folder of a run: it holds {there}, and neither config.toml, metrics.jsonl, stages/ nor "
            "summary.json; name a folder that `minichatgpt run` made"
        )
    return run


def _names(runs: Sequence[RunFiles]) -> tuple[str, ...]:
    """Folder names, with the folder above where two are equal, and a number where that does not help."""
    plain = [run.name for run in runs]
    longer = [f"{run.folder.resolve().parent.name}/{run.name}" for run in runs]
    names = [long if plain.count(short) > 1 else short for short, long in zip(plain, longer, strict=True)]
    return tuple(f"{name} ({i + 1})" if names.count(name) > 1 else name for i, name in enumerate(names))


# --- settings


def _settings(runs: Sequence[RunFiles]) -> Iterator[Row]:
    flat = [dict(_flatten("", tomllib.loads(run.config_text or ""))) for run in runs]
    known = [settings for settings, run in zip(flat, runs, strict=True) if run.config_text is not None]
    for key in dict.fromkeys(key for settings in known for key in settings):
        values = [settings.get(key, NONE) for settings in known]
        if key not in NOT_COMPARED and any(value != values[0] for value in values):
            yield Row(key, tuple(_shown(settings.get(key, NONE)) for settings in flat))


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _flatten(prefix: str, value: Any) -> Iterator[tuple[str, Any]]:
    """Dotted names; long lists, as of inline texts, by their length."""
    if isinstance(value, Mapping) and value:
        for key, item in value.items():
            yield from _flatten(f"{prefix}.{key}" if prefix else key, item)
    elif isinstance(value, list) and len(value) > 8:
        yield prefix, f"{len(value)} entries, {hash_of(value)}"
    else:
        yield prefix, value


def hash_of(value: Any) -> str:
    """A few digits that tell long lists apart."""
    return f"{zlib.crc32(repr(value).encode()):08x}"


# --- texts


def _texts(runs: Sequence[RunFiles]) -> Iterator[tuple[str, tuple[Said | None, ...]]]:
    """Prompts that at least one run kept, those of the most runs first."""
    said = [_said(run) for run in runs]
    prompts = dict.fromkeys(prompt for one in said for prompt in one)
    rows = [(prompt, tuple(one.get(prompt) for one in said)) for prompt in prompts]
    yield from sorted(rows, key=lambda row: sum(one is None for one in row[1]))


def _said(run: RunFiles) -> dict[str, Said]:
    """By prompt: the answers after PPO or, before there are any, those of the last evaluation within."""
    if run.heldout:
        return {line.prompt: Said(line.after, line.score_after, line.judge_after) for line in run.heldout}
    if run.evaluations:
        return {text.prompt: Said(text.response, text.score, text.judge) for text in run.evaluations[-1].texts}
    return {}
