"""The recorded trajectories of one update: one safetensors file, byte for byte the same for the same samples.

Ragged rows lie end to end; `*_offsets` [N+1] say where each begins. `samples_per_prompt` is there where it is above 1.
Times, names of workers and the lineage are left out on purpose: the file must not depend on who generated a sample, nor
on how often the run was cut off before.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from common.errors import DataError
from common.records import Identity, Judgement, Prompt, Rollout, Trajectory

_RAGGED = frozenset({"prompt_ids", "response_ids", "logprobs", "ref_logprobs"})


def trajectory_path(folder: Path, step: int) -> Path:
    """Where the trajectories of an update are."""
    return folder / f"update_{step:06d}.safetensors"


def write_trajectories(path: Path, trajectories: Sequence[Trajectory]) -> None:
    """Write the trajectories that an update trained on, in the order given."""
    rollouts = [t.rollout for t in trajectories]
    columns: dict[str, np.ndarray[Any, Any]] = {
        "draw_index": np.array([r.draw_index for r in rollouts], dtype=np.int64),
        "sample_index": np.array([r.sample_index for r in rollouts], dtype=np.int64),
        "prompt_id": np.array([t.prompt.prompt_id for t in trajectories], dtype=np.int64),
        "seed": np.array([r.seed for r in rollouts], dtype=np.uint64),
        "step": np.array([r.identity.step for r in rollouts], dtype=np.int64),
        "truncated": np.array([r.finish == "length" for r in rollouts], dtype=np.bool_),
        "score": np.array([t.judgement.score for t in trajectories], dtype=np.float64),
    }
    group_sizes = Counter(r.draw_index for r in rollouts)
    if max(group_sizes.values()) > 1:
        columns["samples_per_prompt"] = np.array([group_sizes[r.draw_index] for r in rollouts], dtype=np.int64)
    for name in trajectories[0].judgement.parts:
        columns[f"score_part.{name}"] = np.array([t.judgement.parts[name] for t in trajectories], dtype=np.float64)
    columns |= _ragged("prompt_ids", [t.prompt.token_ids for t in trajectories])
    columns |= _ragged("response_ids", [r.response_ids for r in rollouts])
    columns |= _ragged("logprobs", [r.logprobs for r in rollouts])
    refs = [t.ref_logprobs for t in trajectories if t.ref_logprobs is not None]
    if refs:
        columns |= _ragged("ref_logprobs", refs)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(columns, partial)
    partial.replace(path)


def read_trajectories(path: Path) -> dict[str, Any]:
    """Columns by name; ragged ones as lists of arrays."""
    columns = load_file(path)
    offsets = {name.removesuffix("_offsets") for name in columns if name.endswith("_offsets")}
    return {
        name: np.split(values, columns[f"{name}_offsets"][1:-1]) if name in offsets else values
        for name, values in columns.items()
        if not name.endswith("_offsets")
    }


def read_back(path: Path, *, lineage: int = 0) -> list[Trajectory]:
    """The trajectories of a file, as far as an update depends on them, in the order in which they were written.

    Not recorded are the attempt, the limit of tokens and the text of a prompt, and the scorers' version.

    Args:
        path: of the file.
        lineage: of the weights that generated them, which the file leaves out.

    Raises:
        DataError: there is no such file, or it is damaged.
    """
    try:
        columns = read_trajectories(path)
        for name in _RAGGED & columns.keys():
            if not isinstance(columns[name], list):
                raise KeyError(f"{name}_offsets")
        return [_row(columns, row, lineage) for row in range(len(columns["draw_index"]))]
    except (OSError, SafetensorError, KeyError, IndexError) as error:
        raise DataError(f"{path} cannot be read as trajectories of an update: {error!r}") from error


def _row(columns: Mapping[str, Any], row: int, lineage: int) -> Trajectory:
    """Row `row` of the columns."""
    draw, sample = int(columns["draw_index"][row]), int(columns["sample_index"][row])
    response = columns["response_ids"][row]
    prefix = "score_part."
    parts = {name.removeprefix(prefix): float(c[row]) for name, c in columns.items() if name.startswith(prefix)}
    return Trajectory(
        Prompt(draw, int(columns["prompt_id"][row]), columns["prompt_ids"][row], max_new_tokens=len(response)),
        Rollout(
            draw,
            sample,
            attempt=0,
            seed=int(columns["seed"][row]),
            response_ids=response,
            logprobs=columns["logprobs"][row],
            identity=Identity(lineage, int(columns["step"][row])),
            finish="length" if columns["truncated"][row] else "stop",
        ),
        Judgement(draw, sample, float(columns["score"][row]), parts, scorer_version=""),
        columns["ref_logprobs"][row] if "ref_logprobs" in columns else None,
    )


def _ragged(name: str, rows: Sequence[np.ndarray[Any, Any]]) -> dict[str, np.ndarray[Any, Any]]:
    lengths = [len(row) for row in rows]
    return {name: np.concatenate(rows), f"{name}_offsets": np.cumsum([0, *lengths], dtype=np.int64)}
