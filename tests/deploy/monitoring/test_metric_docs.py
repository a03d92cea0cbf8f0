"""docs/metrics.md says what the catalogue declares."""

from pathlib import Path

from common.metric_catalogue import CATALOGUE, GROUPS
from deploy.monitoring.metric_docs import COMMAND, page

ROOT = Path(__file__).parents[3]


def test_the_page_says_what_is_declared():
    there = (ROOT / "docs" / "metrics.md").read_text(encoding="utf-8")
    assert there == page(), f"docs/metrics.md is not what the catalogue says; run: {COMMAND}"


def test_every_metric_has_one_row_of_six_cells_under_its_group():
    for title, metrics in GROUPS.items():
        section = page().split(f"\n## {title}\n")[1].split("\n## ")[0]
        rows = [line for line in section.splitlines() if line.startswith("| `minichatgpt_")]
        assert [row.split("`")[1] for row in rows] == [metric.full_name for metric in metrics]
        assert {row.replace("\\|", "").count("|") for row in rows} == {7}


def test_a_row_names_type_labels_unit_meaning_and_when_to_worry():
    rows = {line.split("`")[1]: line for line in page().splitlines() if line.startswith("| `minichatgpt_")}
    assert len(rows) == len(CATALOGUE)
    row = rows["minichatgpt_unscored_samples_total"]
    assert row.startswith(
        "| `minichatgpt_unscored_samples_total` | counter | `reason`: reward_nonfinite, reward_error,"
    )
    assert row.endswith("| samples | Samples that could not be judged, by reason. | It grows. |")
    assert "`clip_fraction` of [metrics.jsonl](runs.md)." in rows["minichatgpt_clip_ratio"]
    assert "`gap` of [evaluations.jsonl](evaluation.md)." in rows["minichatgpt_evaluation_gap_ratio"]
