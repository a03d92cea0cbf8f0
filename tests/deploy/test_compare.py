"""Runs side by side: what differs, what they reached, who wins; honest about gaps, safe to open."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from typer.testing import CliRunner

from common.errors import DataError
from deploy.cli import app
from deploy.compare.compare import compare_runs
from deploy.compare.curves import WANTED, overlays
from deploy.compare.page import render, write_page
from deploy.compare.view import print_comparison
from deploy.run_folder.contents import read_run

SCRIPT = "is <script>alert(1)</script> [bold]fun[/]"


def write_lines(path: Path, lines: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def evaluation(step: int, judged: list[float], *, prompt: str = "the film", **asked: Any) -> dict[str, Any]:
    numbers = {"reward": 0.5 + step, "judge_p_positive": 0.4, "kl_seq_sum": 2.0, "win_rate": 0.6, "win_rate_low": 0.5,
               "win_rate_high": 0.7, "gap": 0.25, "response_tokens": 7.0}  # fmt: skip
    return {
        "step": step,
        "asked": {"judge": "j", "evaluate.top_p": 1.0, "prompts": "p", **asked},
        "prompts": len(judged),
        "numbers": numbers,
        "over_optimised": step == 4,
        "draws": list(range(len(judged))),
        "rewards": judged,
        "judged": judged,
        "texts": [{"prompt": prompt, "response": SCRIPT, "score": 1.5, "judge": 0.75}],
    }


@pytest.fixture
def make(tmp_path):
    """A run folder that is not finished, as far as it is described."""

    def build(name, *, lr=0.1, seed=7, updates=4, evaluations=(), **more):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        config = f'name = "{name}"\nseed = {seed}\n[ppo]\nupdates = 8\ndata = []\n[ppo.optimizer]\nlr = {lr}\n'
        (folder / "config.toml").write_text(config, encoding="utf-8")
        write_lines(
            folder / "metrics.jsonl",
            [
                {"step": s, "metrics": {"score_mean": 0.1 * s, "kl_seq_sum": 1.0}, "seconds": {"total": 2.0},
                 "ledger": {"trained": 32 * s}}
                for s in range(1, updates + 1)
            ],
        )  # fmt: skip
        if evaluations:
            write_lines(folder / "evaluations.jsonl", list(evaluations))
        for file, content in more.items():
            (folder / f"{file}.json").write_text(json.dumps(content), encoding="utf-8")
        return folder

    return build


@pytest.fixture
def two(make):
    """Two unfinished runs that were asked the same prompts."""
    one = make("one", evaluations=[evaluation(0, [0.0, 0.0, 0.0, 0.0]), evaluation(4, [1.0, 0.0, 2.0, -1.0])])
    return one, make("two", lr=0.2, evaluations=[evaluation(2, [2.0, 1.0, 2.0, -2.0])])


def printed(folders) -> str:
    console = Console(file=io.StringIO(), width=160)
    print_comparison(compare_runs(folders), console)
    return console.file.getvalue()


def cells(found, label):
    return next(row.cells for row in found.numbers if row.label == label)


def test_only_settings_that_differ_are_told_and_the_name_is_none(two):
    found = compare_runs(two)
    assert [(row.label, row.cells) for row in found.settings] == [("ppo.optimizer.lr", ("0.1", "0.2"))]
    assert "ppo.optimizer.lr" in printed(two)


def test_an_unfinished_run_tells_its_last_evaluation_and_says_so(two):
    found = compare_runs(two)
    assert cells(found, "Updates") == ("4 of 8", "4 of 8")
    assert cells(found, "Numbers below") == ("after update 4", "after update 2")
    assert cells(found, "Reward") == ("+4.50", "+2.50")
    assert cells(found, "Reward before PPO") == ("+0.50", "–")
    assert cells(found, "Win rate over before PPO") == ("60.0 % (50–70)",) * 2
    assert cells(found, "Over-optimised after") == ("4", "never")
    assert cells(found, "PPO") == ("8.0 s", "8.0 s")
    assert cells(found, "Trajectories") == ("128", "128")


def test_a_finished_run_tells_the_evaluation_after_ppo(run_copy):
    stage = json.loads((run_copy / "stages" / "evaluate.json").read_text(encoding="utf-8"))["metrics"]
    found = compare_runs([run_copy, run_copy])
    assert cells(found, "Numbers below") == ("after PPO",) * 2
    assert cells(found, "Rated positive by the judge") == (f"{100 * stage['judge_p_positive_after']:.1f} %",) * 2
    assert cells(found, "Ended by EOS") == (f"{100 * stage['eos_fraction_after']:.1f} %",) * 2
    assert len(set(found.names)) == 2, "the same folder twice is told apart"
    assert found.settings == ()
    assert len(found.texts) == 6
    assert all(said is not None for _, answers in found.texts for said in answers)


def test_who_wins_follows_from_the_judge_s_numbers_on_the_same_prompts(two):
    (duel,) = compare_runs(two).duels
    assert (duel.one, duel.other, duel.prompts, duel.steps) == ("two", "one", 4, (2, 4))
    assert duel.rate == (1 + 1 + 0.5 + 0) / 4
    assert "the judge prefers two on 62.5 % of 4 held-out prompts" in printed(two).replace("\n", " ")


@pytest.mark.parametrize(
    ("other", "why"),
    [
        ({"evaluations": [evaluation(2, [1.0], judge="k")]}, "their evaluations differ in judge; use evaluate.against"),
        (
            {"evaluations": [{**evaluation(2, [1.0], **{"prompts": "q", "evaluate.top_p": 0.5}), "texts": []}]},
            "their evaluations differ in evaluate.top_p, prompts; use evaluate.against",
        ),
        ({"evaluations": [{**evaluation(2, [1.0]), "asked": {}}]}, "one of them does not say what was asked"),
        ({}, "evaluate.every_updates was 0 in one of them"),
    ],
)
def test_runs_that_do_not_compare_say_why(two, make, other, why):
    found = compare_runs([two[0], make("other", **other)])
    assert found.duels[0].rate is None
    assert why in printed([two[0], two[0].parent / "other"]).replace("\n", " ")


def test_curves_lie_over_each_other_by_update_and_by_trajectories(two):
    runs = [read_run(folder) for folder in two]
    for by_trajectories, axis in ((False, "update"), (True, "trajectories")):
        found = overlays(runs, ["one", "two"], by_trajectories=by_trajectories)
        assert len(found) == len(WANTED)
        for overlay in found:
            assert f'aria-label="{overlay.title} by {axis}"' in overlay.svg
            assert {"var(--series-1)", "var(--series-2)"} <= set(re.findall(r"var\(--series-\d\)", overlay.svg))
            assert overlay.missing == ()


def test_a_run_that_did_not_record_a_curve_is_named_under_it(two, make):
    bare = make("bare")
    found = {o.title: o for o in overlays([read_run(two[0]), read_run(bare)], ["one", "bare"], by_trajectories=False)}
    assert found["Judge on held-out prompts"].missing == ("bare",)
    assert found["Score of the samples"].missing == ()
    nothing = overlays([read_run(bare)], ["bare"], by_trajectories=False)
    assert [o.title for o in nothing if o.svg is None] == [wanted.title for wanted in WANTED if wanted.is_heldout]


def test_the_page_is_self_contained_escaped_and_the_same_every_time(two, tmp_path):
    (two[1] / "config.toml").write_text('name = "x"\nseed = 7\nwhat = "</td><script>x</script>"\n', encoding="utf-8")
    page = render(compare_runs(two))
    assert "http" not in page
    assert not re.findall(r"@import|<link|<script|<iframe|\bsrc=", page)
    assert "is &lt;script&gt;alert(1)&lt;/script&gt; [bold]fun[/]" in page
    assert "&lt;/td&gt;" in page
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    write_page(compare_runs(two), tmp_path / "new" / "compare.html")
    assert (tmp_path / "new" / "compare.html").read_text(encoding="utf-8") == page
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["compare.html"]


def test_the_page_balances_its_tags(two):
    from html.parser import HTMLParser

    class Balance(HTMLParser):
        """Follows what is open."""

        VOID = frozenset({"meta", "br", "use", "path", "link"})

        def __init__(self):
            super().__init__()
            self.open = []

        def handle_starttag(self, tag, attributes):
            if tag not in self.VOID:
                self.open.append(tag)

        def handle_endtag(self, tag):
            if tag not in self.VOID:
                assert self.open.pop() == tag

    balance = Balance()
    balance.feed(render(compare_runs(two)))
    assert balance.open == []


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["one"], "got 1 run to compare; name two or more"),
        (["one", "tow"], r"tow does not exist; did you mean 'two'\? runs in .*: one, two"),
    ],
)
def test_errors_name_what_is_there(two, arguments, told):
    result = CliRunner().invoke(app, ["compare", *arguments, "--runs", str(two[0].parent)])
    with pytest.raises(DataError, match=told):
        raise result.exception


def test_a_folder_that_is_no_run_is_refused_with_what_it_holds(two, tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    (folder / "cat.png").touch()
    with pytest.raises(DataError, match=r"pictures is no folder of a run: it holds cat\.png"):
        compare_runs([two[0], folder])


def test_the_command_prints_the_table_and_writes_the_page(two):
    runs = two[0].parent
    result = CliRunner().invoke(app, ["compare", "one", str(two[1]), "--runs", str(runs)])
    assert result.exit_code == 0, result.output
    assert "Settings that differ" in result.output
    assert "Judge on held-out prompts" in (runs / "compare.html").read_text(encoding="utf-8")
