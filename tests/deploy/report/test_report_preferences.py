"""What page and terminal say of a reward model that learnt from preferences, and when they warn."""

import io
import json

import pytest
from rich.console import Console

from deploy.console import print_summary
from deploy.report.preferences import length_warning, preference_measures, preference_numbers, scores_shown
from deploy.report.report import write_report
from deploy.run_folder.contents import PreferenceNumbers, Summary

NUMBERS = {
    "heldout_pairs": 500,
    "calibration_error": 0.031,
    "accuracy_shorter": 0.71,
    "accuracy_longer": None,
    "score_gap": 1.4,
    "score_mean": 0.02,
    "score_std": 1.1,
    "score_quantiles": {"0.05": -1.9, "0.5": 0.1, "0.95": 1.8},
    "score_histogram": {"edges": [-2.0, -1.0, 0.0, 2.0], "counts": [10, 40, 20]},
    "length_pearson": 0.1,
    "length_spearman": -0.05,
}


def summary(**changes):
    return Summary.model_validate({"rm_accuracy": 0.82, "rm_preferences": NUMBERS | changes})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "stages").mkdir()

    def write(**changes):
        text = json.dumps({"rm_accuracy": 0.82, "rm_preferences": NUMBERS | changes})
        (tmp_path / "summary.json").write_text(text)
        return tmp_path

    return write


def test_rows_are_of_what_was_measured_and_none_without_preferences():
    rows = preference_measures(summary())
    assert [(row.label, row.after_text) for row in rows] == [
        ("Reward model calibration error", "3.1 %"),
        ("Score and length", "−0.05"),
        ("Accuracy, shorter preferred", "71.0 %"),
    ]
    assert preference_measures(Summary(rm_accuracy=0.8)) == preference_measures(None) == []


@pytest.mark.parametrize(
    ("pearson", "spearman", "says"),
    [
        (0.1, -0.05, None),
        (0.3, -0.3, None),
        (0.1, 0.31, "correlation +0.31 on held-out texts. PPO would learn to write longer"),
        (-0.5, 0.2, "correlation −0.50 on held-out texts. PPO would learn to write shorter"),
        (None, None, None),
    ],
)
def test_a_score_that_follows_length_is_warned_of(pearson, spearman, says):
    warning = length_warning(PreferenceNumbers(length_pearson=pearson, length_spearman=spearman))
    assert warning is None if says is None else says in warning


def test_a_stage_on_labels_has_no_numbers_of_preferences():
    assert preference_numbers({"accuracy": 0.8, "heldout_texts": 9}) is None
    assert preference_numbers({"accuracy": 0.8} | NUMBERS).score_gap == 1.4


def test_the_histogram_is_scaled_to_its_highest_bar():
    shown = scores_shown(summary())
    assert [bar.height_percent for bar in shown.bars] == [25, 100, 50]
    assert shown.bars[1].title == "−1.00 to +0.00: 40"
    assert (shown.low, shown.high) == ("−2.00", "+2.00")
    assert shown.numbers["5 % below"] == "−1.90"
    assert scores_shown(Summary()) is None


def test_the_page_shows_scores_and_warning(folder):
    page = write_report(folder()).read_text(encoding="utf-8")
    assert "Scores of held-out texts" in page
    assert page.count("<i style=") >= 3
    assert "preferred text higher" in page
    assert 'class="warning"' not in page
    assert "goes with length" in write_report(folder(length_spearman=0.6)).read_text(encoding="utf-8")


def test_the_terminal_shows_numbers_and_warning(folder):
    for spearman, warns in ((0.0, False), (-0.7, True)):
        console = Console(file=io.StringIO(), width=120)
        print_summary(folder(length_spearman=spearman), console)
        text = console.file.getvalue()
        assert "Score and length" in text
        assert ("goes with length" in text) is warns
