"""The summary in the terminal: the report's numbers, within the width, whatever the texts hold."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from common.errors import DataError
from deploy.console import MAX_CHARACTERS, MAX_TEXTS, one_line, print_summary


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = tmp_path / "my-run"
    run.mkdir()
    summary = {
        "p_positive_before": 0.451,
        "p_positive_after": 0.883,
        "kl_token_mean": 0.401,
        "win_rate": 0.836,
        "win_rate_ci95": [0.802, 0.866],
        "sft_perplexity_before": {"a_source_with_a_long_name": 1084.2},
        "sft_perplexity_after": {"a_source_with_a_long_name": 1097.5},
        "updates": 30,
        "trajectories": 7680,
        "seconds": {"pretrain": 92.4, "ppo": 101.9, "evaluate": None},
    }
    (run / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    texts = [
        {
            "kind": "heldout",
            "prompt": f"film{i}",
            "before": "[bold]x[/red] [/]",
            "after": "word " * 30,
            "score_after": 2.5,
        }
        for i in range(MAX_TEXTS + 1)
    ]
    (run / "samples.jsonl").write_text("".join(json.dumps(text) + "\n" for text in texts), encoding="utf-8")
    (run / "report.html").write_text("", encoding="utf-8")
    return run


def printed(folder: Path, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, record=True)
    print_summary(folder, console)
    return console.export_text()


def test_summary_tells_result_numbers_times_texts_and_report(folder: Path) -> None:
    shown = printed(folder)
    flat = " ".join(shown.split())
    assert (
        "After 30 updates on 7,680 samples, responses to held-out prompts are rated 88 % positive (before: 45 %)"
        in flat
    )
    for part in ("45.1 %", "88.3 %", "✓ +43.2 points", "80.2–86.6 %", "✗ +13.3", "3 min 14 s in all", "1 min 42 s"):
        assert part in shown, part
    assert "score +2.50" in shown
    assert str(folder / "report.html") in shown
    assert f"film{MAX_TEXTS - 1}" in shown
    assert f"film{MAX_TEXTS}" not in shown


def test_texts_are_not_taken_for_markup(folder: Path) -> None:
    assert "[bold]x[/red] [/]" in printed(folder)


@pytest.mark.parametrize("width", [60, 80, 100, 160])
def test_no_line_is_wider_than_the_terminal_and_no_number_is_cut(folder: Path, width: int) -> None:
    shown = printed(folder, width)
    lines = [line for line in shown.splitlines() if "report.html" not in line]
    assert max(map(len, lines)) <= width
    assert "✓ +43.2 points" in shown
    assert "\n%" not in shown


def test_an_empty_folder_is_told_part_by_part(tmp_path: Path) -> None:
    flat = " ".join(printed(tmp_path).split())
    assert "PPO has made no update" in flat
    assert "Win rate" in flat
    assert "no stage has finished" in flat
    assert "Texts before and after: not recorded" in flat
    assert "No report yet" in flat


def test_malformed_files_are_errors(folder: Path) -> None:
    (folder / "samples.jsonl").write_text("{\n", encoding="utf-8")
    with pytest.raises(DataError, match=r"samples\.jsonl:1"):
        printed(folder)


def test_texts_cannot_steer_the_terminal() -> None:
    assert one_line("a\x1b[2Jb\n\tc\u202ed") == "a\ufffd[2Jb c\ufffdd"
    assert len(one_line("x" * 2 * MAX_CHARACTERS)) == MAX_CHARACTERS
