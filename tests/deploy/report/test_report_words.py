"""What the report says of a number: better or worse, how long, and how prompt and response are joined."""

from typing import Any

import pytest

from deploy.report.words import duration, gap_between, measures
from deploy.run_folder.contents import Summary


@pytest.mark.parametrize(
    ("numbers", "verdict"),
    [
        ({"reward_before": 1.0, "reward_after": 0.5}, "worse"),
        ({"reward_before": 0.5, "reward_after": 1.0}, "better"),
        ({"distinct_2_before": 0.6, "distinct_2_after": 0.41}, "worse"),
        ({"distinct_2_before": 0.6, "distinct_2_after": 0.43}, "same"),
        ({"sft_perplexity_before": {"a": 9.0}, "sft_perplexity_after": {"a": 8.0}}, "better"),
        ({"win_rate": 0.52, "win_rate_ci95": (0.48, 0.56)}, "same"),
        ({"win_rate": 0.45, "win_rate_ci95": (0.41, 0.49)}, "worse"),
        ({"rm_accuracy": 0.9}, ""),
    ],
)
def test_verdicts_follow_the_good_direction(numbers: dict[str, Any], verdict: str) -> None:
    row = next(row for row in measures(Summary(**numbers)) if not row.is_absent)
    assert row.verdict == verdict


def test_prompt_and_response_are_joined_as_a_reader_expects() -> None:
    assert gap_between("a film", "that") == " "
    assert gap_between("a film", " that") == ""
    assert gap_between("a film", ", that") == ""
    assert gap_between("", "that") == ""


def test_durations_are_said_as_people_say_them() -> None:
    assert [duration(s) for s in (None, 4.21, 59.97, 187.2, 7384.0)] == [
        "–",
        "4.2 s",
        "1 min 00 s",
        "3 min 07 s",
        "2 h 03 min",
    ]
