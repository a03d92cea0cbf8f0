"""What was changed while a run trained, on the page and in the terminal: numbered lines, a table, a sentence."""

import io
import json
import re
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from rich.console import Console

from common.run_settings import RunSettings
from deploy.console import print_summary
from deploy.ppo.settings_journal import Change, Journal
from deploy.report.changes import Mark, changes_sentence
from deploy.report.curves import GROUPS
from deploy.report.figures import MAX_LABELS, draw
from deploy.report.report import write_report
from deploy.report.summary import tokens_per_second, write_summary
from deploy.run_folder.contents import UpdateLine, read_run
from deploy.run_folder.files import write_json

START = RunSettings(temperature=1.0, learning_rate=1e-3, kl_target=6.0, kl_coef=None)
DOTTED = "stroke-dasharray: 0.9,1.8"
NAMES = ("score_mean", "score_std", "score_min", "score_max", "entropy", "response_tokens")


def keep(folder, *changes):
    """A journal of (at_step, who, reason, all settings that differ from the start)."""
    journal = Journal(start=START)
    for at_step, who, reason, values in changes:
        journal = journal.add(
            Change(at_step=at_step, from_draw=0, settings=replace(START, **values), who=who, reason=reason,
                   time=datetime(2026, 1, 2, tzinfo=UTC), lineage=0)
        )  # fmt: skip
    write_json(folder / "steering.json", journal.model_dump(mode="json"))


@pytest.fixture
def folder(tmp_path):
    rows = [
        {"step": step, "metrics": dict.fromkeys(NAMES, 1.0 + step), "seconds": {"total": 3.0, "paused": 1.0}}
        for step in range(1, 9)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    write_json(tmp_path / "stages" / "ppo.json", {"stage": "ppo", "seconds": 1.0, "metrics": {"updates": 8},
               "output_hash": "", "inputs": {}})  # fmt: skip
    return tmp_path


def page_of(folder):
    return write_report(folder).read_text(encoding="utf-8")


def dotted(page):
    """Lines across a curve, by curve."""
    figures = re.findall(r"<figure>.*?</figure>", page, flags=re.DOTALL)
    return [figure.count(DOTTED) for figure in figures if "<svg" in figure]


THREE = (
    (2, "operator", "<b>it swings</b>", {"temperature": 0.7}),
    (5, "guard", "KL 9.2 is above 8", {"temperature": 0.7, "learning_rate": 5e-4}),
    (5, "operator", "", {"temperature": 0.7, "learning_rate": 5e-4, "kl_target": 4.0}),
    (8, "operator", "asked for and never in force", {"temperature": 9.0}),
)


def test_changes_are_lines_in_every_curve_with_a_legend_and_rows_of_a_table(folder):
    keep(folder, *THREE)
    page = page_of(folder)
    assert dotted(page) == [2] * page.count("<svg")
    assert page.count('<i class="mark"></i>see the tables above') == page.count("<svg")
    cells = [re.sub(r"<[^>]*>", "", cell) for cell in re.findall(r"<td[^>]*>(.*?)</td>", page)]
    table = [tuple(cells[i : i + 6]) for i in range(0, 18, 6)]
    assert table == [
        ("1", "3", "temperature", "1 → 0.7", "operator", "&lt;b&gt;it swings&lt;/b&gt;"),
        ("2", "6", "learning rate", "0.001 → 0.0005", "guard rail", "KL 9.2 is above 8"),
        ("2", "6", "KL target", "6 → 4", "operator", "–"),
    ]
    assert "never in force" not in page


def test_a_line_stands_between_the_last_update_before_it_and_the_first_with_it():
    updates = [UpdateLine(step=step, metrics={"entropy": float(step)}) for step in range(1, 10)]
    [curve] = [curve for group in GROUPS for curve in group.curves if curve.slug == "entropy"]
    svg = draw(curve, updates, [Mark(5, "1")])
    paths = re.findall(r'<path d="([^"]+)"[^>]*style="([^"]*)"', svg)
    places = {style: [float(x) for x in re.findall(r"[ML] (\S+)", path)] for path, style in paths}
    [points] = [xs for style, xs in places.items() if "var(--series-1)" in style and len(xs) == len(updates)]
    [line] = [xs for style, xs in places.items() if DOTTED in style]
    assert line == pytest.approx([(points[4] + points[5]) / 2] * 2, abs=0.01)


def test_without_changes_there_is_neither_line_nor_table_nor_legend(folder):
    page = page_of(folder)
    assert dotted(page) == [0] * page.count("<svg")
    assert "Changed while it ran" not in page
    assert '<i class="mark">' not in page


def test_terminal_and_summary_say_how_much_was_changed(folder):
    console = Console(file=io.StringIO(), width=200)
    print_summary(folder, console)
    assert "Settings were" not in console.file.getvalue()
    assert "settings_changed" not in write_summary(folder)
    keep(folder, *THREE)
    print_summary(folder, console)
    sentence = (
        "Settings were changed 3 times while it ran, 1 of them by a guard rail: temperature, learning rate, KL target."
    )
    assert sentence in console.file.getvalue()
    assert write_summary(folder)["settings_changed"] == 3
    assert changes_sentence(read_run(folder).changes[:1]) == "Settings were changed once while it ran: temperature."


@pytest.mark.parametrize("number", [MAX_LABELS, MAX_LABELS + 1])
def test_a_great_many_changes_are_lines_without_numbers(number):
    updates = [UpdateLine(step=step, metrics={"entropy": 1.0}) for step in range(1, 40)]
    [curve] = [curve for group in GROUPS for curve in group.curves if curve.slug == "entropy"]
    svg = draw(curve, updates, [Mark(step, f"n{step}") for step in range(1, 1 + number)])
    assert svg.count(DOTTED) == number
    assert len(re.findall(r">n\d+</text>", svg)) == (number if number <= MAX_LABELS else 0)


def test_a_pause_does_not_count_as_slowness(folder):
    tokens = sum(1.0 + step for step in range(1, 9))
    assert tokens_per_second(folder / "metrics.jsonl")["loop"] == round(tokens / (8 * 3.0 - 8 * 1.0), 1)
