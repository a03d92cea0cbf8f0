"""summary.json: the numbers of a run in one place, gathered from what its stages left."""

import json
from pathlib import Path
from typing import Any

from deploy.report.preferences import preference_numbers
from deploy.run_folder.contents import changes_in_force
from deploy.run_folder.evaluation_file import read_evaluations
from deploy.run_folder.files import read_json, write_json

FROM_EVALUATION = (
    "reward_before",
    "reward_after",
    "p_positive_before",
    "p_positive_after",
    "judge_p_positive_before",
    "judge_p_positive_after",
    "kl_seq_sum",
    "kl_token_mean",
    "win_rate",
    "win_rate_ci95",
    "distinct_2_before",
    "distinct_2_after",
)


def write_summary(folder: Path) -> dict[str, Any]:
    """Gather the stages' results; a number whose stage was not run is null.

    `against`, `settings_changed` and `over_optimisation` are there where rivals were met, settings were changed while
    PPO learnt, and where it was evaluated meanwhile.
    """
    records = {p.stem: read_json(p) for p in sorted((folder / "stages").glob("*.json"))}
    evaluated = records.get("evaluate", {}).get("inputs", {}).get("ppo")
    if evaluated != records.get("ppo", {}).get("output_hash"):
        records.pop("evaluate", None)  # of another PPO than the one that lies here now
    metrics = {stage: record["metrics"] for stage, record in records.items()}
    evaluation, ppo = metrics.get("evaluate", {}), metrics.get("ppo", {})
    sft = metrics.get("sft", {})
    summary: dict[str, Any] = {name: evaluation.get(name) for name in FROM_EVALUATION}
    summary |= {
        "evaluation_prompts": evaluation.get("prompts"),
        "sft_perplexity_before": sft.get("perplexity_before"),
        "sft_perplexity_after": sft.get("perplexity_after"),
        "rm_accuracy": metrics.get("reward_model", {}).get("accuracy"),
        "judge_accuracy": metrics.get("judge", {}).get("accuracy"),
        "updates": ppo.get("updates"),
        "trajectories": ppo.get("trajectories"),
        "ledger": ppo.get("ledger"),
        "seconds": {stage: round(record["seconds"], 2) for stage, record in records.items()},
        "tokens_per_second": tokens_per_second(folder / "metrics.jsonl"),
    }
    pairs = preference_numbers(metrics.get("reward_model", {}))
    if pairs is not None:
        summary["rm_preferences"] = pairs.model_dump(mode="json")
    if "against" in evaluation:
        summary["against"] = evaluation["against"]
    if changes := changes_in_force(folder, last_step=ppo.get("updates") or 0):
        summary["settings_changed"] = len(changes)
    if evaluations := read_evaluations(folder):
        summary["over_optimisation"] = {
            "updates": [line.step for line in evaluations if line.over_optimised],
            "at_the_end": evaluations[-1].over_optimised,
            "gap": evaluations[-1].numbers.get("gap"),
        }
    write_json(folder / "summary.json", summary)
    return summary


def tokens_per_second(path: Path) -> dict[str, float]:
    """Response tokens per wall second of the phases of PPO, over all updates.

    `collect` is generating and judging together, `update` is the learner's, `loop` is everything but pauses.
    """
    if not path.is_file():
        return {}
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    tokens = sum(row["metrics"]["response_tokens"] for row in rows)
    spent = {
        phase: sum(row["seconds"].get(phase, 0.0) for row in rows) for phase in ("collect", "update", "total", "paused")
    }
    wall = {
        "collect": spent["collect"],
        "update": spent["update"],
        "loop": spent["total"] - spent["paused"],
    }
    return {name: round(tokens / seconds, 1) for name, seconds in wall.items() if seconds > 0}
