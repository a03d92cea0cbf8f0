"""The page of a run: complete, honest about gaps, safe to open, and the same every time."""

import itertools
import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.errors import DataError
from deploy.report.absences import WHY_ABSENT
from deploy.report.curves import EVALUATIONS, GROUPS
from deploy.report.figures import MAX_POINTS, draw, series, thinned
from deploy.report.report import extremes, write_report
from deploy.report.words import result_sentence
from deploy.run_folder.contents import ExtremeLine, UpdateLine, final_ledger, read_run, stage_seconds

CURVES = [curve for group in GROUPS for curve in group.curves]
METRICS = sorted({key for curve in CURVES for layer in curve.layers for key in layer.keys if "seconds." not in key})
PHASES = ("collect", "generate", "score", "reference", "update", "prepare", "train", "publish", "fetch", "load")
SUMMARY: dict[str, Any] = {
    "reward_before": -0.24,
    "reward_after": 2.13,
    "p_positive_before": 0.451,
    "p_positive_after": 0.883,
    "judge_p_positive_before": 0.44,
    "judge_p_positive_after": 0.792,
    "kl_seq_sum": 6.41,
    "kl_token_mean": 0.401,
    "win_rate": 0.836,
    "win_rate_ci95": [0.802, 0.866],
    "distinct_2_before": 0.612,
    "distinct_2_after": 0.538,
    "sft_perplexity_before": {"imdb": 84.2},
    "sft_perplexity_after": {"imdb": 97.5},
    "rm_accuracy": 0.771,
    "judge_accuracy": 0.749,
    "updates": 6,
    "trajectories": 7680,
    "ledger": {"dispatched": 7680, "trained": 7680, "dropped": {"stale": 3}},
    "seconds": {"ppo": 101.9},
    "tokens_per_second": {"generate": 3310.4},
}


def update_line(step: int, **metrics: float | None) -> dict[str, Any]:
    seconds = {phase: 0.1 * (1 + i) for i, phase in enumerate(PHASES)}
    numbers = dict.fromkeys(METRICS, 0.5 + 0.01 * step) | metrics
    return {"step": step, "identity": f"0.{step}", "metrics": numbers, "seconds": seconds, "ledger": {"trained": step}}


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    run = tmp_path / "my-run"
    (run / "stages").mkdir(parents=True)
    (run / "config.toml").write_text('name = "my-run"\n[ppo]\nclip_eps = 0.2\n', encoding="utf-8")
    write_lines(run / "metrics.jsonl", [update_line(step) for step in range(1, 7)])
    heldout = {
        "kind": "heldout",
        "prompt": "the film",
        "before": "is dull",
        "after": "is <script>alert(1)</script> fun",
    }
    marks = {"score_before": -1.25, "score_after": 2.5, "judge_before": 0.123, "judge_after": 0.912}
    best = [
        {"kind": kind, "step": step, "prompt": "it", "response": f"{kind} of {step}", "score": 1.0, "kl_seq_sum": 4.0}
        for step in range(1, 7)
        for kind in ("best", "worst")
    ]
    write_lines(run / "samples.jsonl", [*best, heldout | marks])
    (run / "summary.json").write_text(json.dumps(SUMMARY, indent=2), encoding="utf-8")
    sft = {
        "stage": "sft",
        "fingerprint": "ab",
        "seconds": 38.1,
        "metrics": {"loss": 3.61, "perplexity": {"imdb": 97.5}},
    }
    (run / "stages" / "sft.json").write_text(json.dumps(sft), encoding="utf-8")
    return run


def page_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def test_page_tells_result_numbers_curves_and_texts(folder: Path) -> None:
    page = page_of(folder)
    assert "rated 88\u00a0% positive (before:\u00a045\u00a0%)" in page
    for number in ("−0.24", "+2.13", "+43.2 points", "80.2–86.6 %", "× 0.88", "0.401", "97.5", "74.9 %", "3,310"):
        assert number in page, number
    for curve in CURVES:
        assert f'aria-label="{curve.title} by update"' in page
        assert curve.shows.replace("'", "&#39;") in page
        assert curve.worry.replace("'", "&#39;") in page
    for text in ("is dull", "best of 1", "worst of 4", "best of 6", "clip_eps = 0.2", "38.1 s", "1 min 42 s", "7,680"):
        assert text in page, text
    assert "best of 2" not in page
    assert 'class="absent"' not in page


def test_evaluations_and_the_alarm_are_on_the_page_where_there_are_any(folder: Path) -> None:
    assert "Held-out prompts while it learnt" not in page_of(folder)
    numbers = {key: 0.1 for curve in EVALUATIONS.curves for layer in curve.layers for key in layer.keys}
    lines = [{"step": step, "numbers": {**numbers, "gap": 0.3}, "over_optimised": step == 4} for step in (0, 2, 4)]
    write_lines(folder / "evaluations.jsonl", lines)
    alarm = {"updates": [4], "at_the_end": True, "gap": 1.25}
    summary = SUMMARY | {"over_optimisation": alarm, "against": {"<b>old</b>": {"win_rate": 0.61}}}
    (folder / "summary.json").write_text(json.dumps(summary), encoding="utf-8")
    page = page_of(folder)
    for curve in EVALUATIONS.curves:
        assert f'aria-label="{curve.title} by update"' in page
    assert "after update 4 the reward had risen on held-out prompts without the judge" in page
    assert "It is on at the end, where the reward is +1.25 standard deviations ahead" in page
    assert "Win rate against &lt;b&gt;old&lt;/b&gt;" in page
    assert "61.0 %" in page


def test_texts_and_names_are_escaped(folder: Path) -> None:
    (folder / "config.toml").write_text('name = "</pre><script>x</script>"\n', encoding="utf-8")
    page = page_of(folder)
    assert "<script" not in page
    assert "is &lt;script&gt;alert(1)&lt;/script&gt; fun" in page
    assert "&lt;/pre&gt;" in page


def test_page_is_self_contained_and_its_ids_are_unique(folder: Path) -> None:
    page = page_of(folder)
    assert "http" not in page
    assert not re.findall(r"@import|<link|<script|<iframe|\bsrc=", page)
    links = re.findall(r'href="([^"]*)"|url\(([^)]*)\)', page)
    assert all((a or b).startswith("#") for a, b in links)
    ids = re.findall(r'\sid="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    assert {(a or b)[1:] for a, b in links} <= set(ids)


def test_same_files_give_the_same_bytes_and_leave_no_other_file(folder: Path) -> None:
    before = {path.name for path in folder.iterdir()}
    first = write_report(folder).read_bytes()
    assert write_report(folder).read_bytes() == first
    assert {path.name for path in folder.iterdir()} == before | {"report.html"}


@pytest.mark.parametrize(
    ("file", "told"),
    [
        ("summary.json", "there is no <code>summary.json</code>; the evaluate stage was not part of the config"),
        ("metrics.jsonl", "no update in <code>metrics.jsonl</code>; the ppo stage was not part of the config"),
        ("samples.jsonl", "no held-out texts in <code>samples.jsonl</code>"),
        ("config.toml", "there is no <code>config.toml</code>"),
    ],
)
def test_a_missing_file_is_told_with_its_reason(folder: Path, file: str, told: str) -> None:
    (folder / file).unlink()
    assert told in page_of(folder)


def test_an_empty_folder_gives_a_page(tmp_path: Path) -> None:
    page = page_of(tmp_path)
    assert "PPO has made no update; what each stage measured is below." in page
    assert page.count('class="absent"') == 7


def test_missing_keys_are_told_with_their_reason(folder: Path) -> None:
    kept = {key: value for key, value in SUMMARY.items() if "judge" not in key and "win" not in key}
    (folder / "summary.json").write_text(json.dumps(kept), encoding="utf-8")
    lines = [update_line(step) for step in (1, 2)]
    for line in lines:
        del line["metrics"]["entropy"], line["metrics"]["value_clip_fraction"]
    write_lines(folder / "metrics.jsonl", lines)
    page = page_of(folder)
    assert (
        "Rated positive by the judge, Win rate, Judge accuracy: not recorded; no judge was part of the config." in page
    )
    assert "independent judge" not in page
    assert "Entropy (nats) (entropy)." in page
    assert "Not recorded: value_clip_fraction." in page


@pytest.mark.parametrize(
    ("ended", "told"),
    [(True, "PPO was stopped after update 6 of 60"), (False, "PPO has done 6 of 60 updates")],
)
def test_a_ppo_that_was_broken_off_is_the_reason_for_what_was_to_follow(folder: Path, ended: bool, told: str) -> None:
    (folder / "config.toml").write_text("[ppo]\nupdates = 60\n[judge]\n[evaluate]\n", encoding="utf-8")
    (folder / "summary.json").write_text(json.dumps({"judge_accuracy": 0.8}), encoding="utf-8")
    (folder / "samples.jsonl").unlink()
    if ended:
        end = {"reason": "seen enough", "exit_code": 3, "ended_at": "2026-11-28T14:00:00Z"}
        (folder / "ended.json").write_text(json.dumps(end), encoding="utf-8")
    page = page_of(folder)
    assert f"there is no result to tell: {told}" in page.replace("\u00a0", " ")
    assert f"KL per response, nats: not recorded; {told}." in page
    assert f"<code>samples.jsonl</code>; {told}." in page
    assert f"{told}; its time is not in the table" in page
    assert "not part of the config, or has not finished." not in page
    assert "no judge" not in page


def test_a_run_whose_numbers_are_all_null_gives_a_page(folder: Path) -> None:
    write_lines(
        folder / "metrics.jsonl", [{"step": 1, "metrics": dict.fromkeys(METRICS), "seconds": {"collect": None}}]
    )
    (folder / "summary.json").write_text(json.dumps(dict.fromkeys(SUMMARY)), encoding="utf-8")
    page = page_of(folder)
    assert "<svg" not in page
    assert "Not drawn" in page


def test_one_update_gives_curves(folder: Path) -> None:
    write_lines(folder / "metrics.jsonl", [update_line(1, logprob_gap_max=0.0, grad_norm=math.inf)])
    page = page_of(folder)
    assert page.count("<svg") == len(CURVES) - 1
    assert "Gradient norm (grad_norm)." in page


@pytest.mark.parametrize(
    ("file", "text", "where"),
    [
        ("metrics.jsonl", '{"step": 1}\n{"step": 2, "metr\n', "metrics.jsonl:2: not JSON"),
        (
            "metrics.jsonl",
            '{"step": 1}\n\n{"step": 3, "metrics": {"entropy": "x"}}\n',
            "metrics.jsonl:3: metrics.entropy",
        ),
        ("metrics.jsonl", '{"identity": "0.1"}\n', "metrics.jsonl:1: step"),
        ("metrics.jsonl", "[]\n", "metrics.jsonl:1: the line"),
        ("samples.jsonl", '{"kind": "good"}\n', "samples.jsonl:1: the line"),
        ("samples.jsonl", '{"kind": "best", "step": 1, "prompt": "a"}\n', "samples.jsonl:1: best.response"),
        ("summary.json", '{\n"reward_before": 1,\n}', "summary.json:3: not JSON"),
        ("summary.json", '{\n"updates": 1,\n"win_rate": "often"}', "summary.json:3: win_rate"),
        ("config.toml", 'name = "x"\nclip 0.2\n', "config.toml:2: not TOML"),
        ("stages/sft.json", "{}", "sft.json:1: stage"),
    ],
)
def test_a_malformed_file_is_an_error_with_file_and_line(folder: Path, file: str, text: str, where: str) -> None:
    (folder / file).write_text(text, encoding="utf-8")
    with pytest.raises(DataError, match=re.escape(where)):
        write_report(folder)
    assert not (folder / "report.html").exists()


def test_broken_utf8_is_an_error_with_file_and_line(folder: Path) -> None:
    (folder / "samples.jsonl").write_bytes(b'{"kind": "best", "step": 1, "prompt": "", "response": ""}\n{"\xff"}\n')
    with pytest.raises(DataError, match=r"samples\.jsonl:2: not UTF-8"):
        write_report(folder)


def test_a_folder_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not a folder"):
        write_report(tmp_path / "nothing")


def test_a_null_leaves_a_gap_in_the_line() -> None:
    entropy = next(curve for curve in CURVES if curve.slug == "entropy")
    whole = [UpdateLine(step=step, metrics={"entropy": float(step)}) for step in range(1, 100)]
    holed = [*whole[:50], UpdateLine(step=51, metrics={"entropy": None}), *whole[51:]]
    assert np.flatnonzero(np.isnan(series(holed, "entropy"))).tolist() == [50]

    def strokes(updates: list[UpdateLine]) -> int:
        line = re.search(r'<path d="([^"]+)"[^>]*stroke: var\(--series-1\)', draw(entropy, updates))
        assert line is not None
        return line.group(1).count("M")

    assert strokes(whole) == 1
    assert strokes(holed) == 2
    assert "nan" not in draw(entropy, holed)


def test_steps_that_were_not_finite_are_warned_of(folder: Path) -> None:
    write_lines(folder / "metrics.jsonl", [update_line(1, nonfinite_steps=0), update_line(2, nonfinite_steps=2)])
    assert "2 optimizer steps were not taken" in page_of(folder)


def test_an_update_that_was_done_again_counts_as_the_later_one(folder: Path) -> None:
    lines = [update_line(1), update_line(2, entropy=1.0), update_line(3), update_line(2, entropy=7.0)]
    write_lines(folder / "metrics.jsonl", lines)
    run = read_run(folder)
    assert [update.step for update in run.updates] == [1, 2, 3]
    assert run.updates[1].metrics["entropy"] == 7.0
    assert "1 update was done again" in page_of(folder)


def test_long_runs_are_thinned_and_keep_the_last_update() -> None:
    updates = [UpdateLine(step=step) for step in range(1, 2 * MAX_POINTS + 2)]
    kept = thinned(updates)
    assert len(kept) <= MAX_POINTS
    assert kept[-1].step == updates[-1].step
    assert len({b.step - a.step for a, b in itertools.pairwise(kept)}) == 1


def test_seconds_come_from_the_stage_before_the_summary_and_in_order(folder: Path) -> None:
    (folder / "stages" / "pretrain.json").write_text('{"stage": "pretrain", "seconds": {"total": 90.0, "load": 2.0}}')
    (folder / "stages" / "ppo.json").write_text('{"stage": "ppo", "seconds": {"collect": 50.0}}')
    assert stage_seconds(read_run(folder)) == {"pretrain": 90.0, "sft": 38.1, "ppo": 101.9}


def test_ledger_is_flat_and_of_the_last_update_without_a_summary(folder: Path) -> None:
    assert final_ledger(read_run(folder)) == {"dispatched": 7680, "trained": 7680, "dropped: stale": 3}
    (folder / "summary.json").unlink()
    assert final_ledger(read_run(folder)) == {"trained": 6}
    assert result_sentence(read_run(folder), WHY_ABSENT).startswith(
        "After 6 updates on 6 samples there is no result to tell"
    )


def test_extremes_are_of_the_first_middle_and_last_update() -> None:
    lines = [ExtremeLine(kind="best", step=step, prompt="", response="") for step in (2, 4, 6, 8, 10)]
    assert [step for step, _ in extremes(lines)] == [2, 6, 10]
    assert [step for step, _ in extremes(lines[:1])] == [2]
    assert extremes([]) == []
