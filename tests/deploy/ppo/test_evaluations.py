"""Held-out prompts while PPO learns: what is trained does not notice, what is measured is done once, and rings."""

import itertools
import json
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
from prometheus_client import CollectorRegistry
from rich.console import Console

from common.errors import MemberFailedError
from common.metrics import RunMetrics
from common.records import (
    ChunkHandle,
    Identity,
    Judgement,
    JudgementChunk,
    Prompt,
    ReferenceChunk,
    Rollout,
    RolloutChunk,
    Stats,
    Unscored,
    WeightsHandle,
)
from common.text import load_tokenizer
from deploy.evaluation.evaluations import MAX_ATTEMPTS, Heldout, HeldoutEvaluations, asked_of
from deploy.evaluation.over_optimisation import point_of
from deploy.ppo.recorder import append_json
from deploy.ppo.stage import clear_samples
from deploy.run_folder.evaluation_file import differences, read_evaluations
from deploy.run_folder.files import read_json
from deploy.stopwatch import Stopwatch

EVERY_TWO = "evaluate.every_updates=2"


def lines_of(folder):
    """The evaluations, without what tells attempts apart."""
    rows = [json.loads(line) for line in (folder / "evaluations.jsonl").read_text(encoding="utf-8").splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "identity")} for row in rows]


@pytest.fixture(scope="session")
def evaluated(tiny, tiny_run, tmp_path_factory):
    """The folder of a run of six updates that was evaluated at every second one. To be read only."""
    import io
    import shutil

    from deploy.local import LocalRuntime
    from deploy.pipeline import Pipeline
    from deploy.report.summary import write_summary

    folder = tmp_path_factory.mktemp("evaluated") / "tiny"
    shutil.copytree(tiny_run, folder)
    console = Console(file=io.StringIO(), width=500)
    config = tiny("ppo.updates=6", EVERY_TWO)
    Pipeline(config, folder, start_runtime=LocalRuntime, console=console, again=frozenset({"ppo"})).run()
    write_summary(folder)
    (folder / "printed.txt").write_text(console.file.getvalue(), encoding="utf-8")
    return folder


# --- what is trained


@pytest.mark.parametrize(
    "changes",
    [
        (),
        (
            "ppo.reference=none",
            'ppo.kl={type="fixed", coef=0}',
            "ppo.score_baseline=prompt",
            "evaluate.prompts_in_training=5",
        ),
    ],
)
def test_what_is_trained_is_the_same_to_the_last_bit_with_and_without_evaluations(train, undisturbed, changes):
    outcome = train(EVERY_TWO, *changes).ok()
    assert [line["step"] for line in lines_of(outcome.folder)] == [0, 2, 4, 6]
    clear_samples(outcome.folder, heldout=True)
    outcome.assert_same_as(undisturbed(*(change for change in changes if not change.startswith("evaluate."))))
    assert outcome.ledger()["dispatched"] == 6 * 32, "evaluations have a ledger of their own"


def test_samples_are_removed_line_by_line_whatever_the_model_wrote(tmp_path):
    path = tmp_path / "samples.jsonl"
    for number, kind in enumerate(("best", "heldout", "worst", "heldout")):
        append_json(path, {"kind": kind, "step": 1, "response": f"{number} a\u2028b\u0085c\u2029d"})
    with path.open("a") as file:
        file.write('{"kind": "hel')
    clear_samples(tmp_path, heldout=True)
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
    assert [(row["kind"], row["response"]) for row in rows] == [
        ("best", "0 a\u2028b\u0085c\u2029d"), ("worst", "2 a\u2028b\u0085c\u2029d")
    ]  # fmt: skip


# --- what is measured


def test_the_last_evaluation_says_what_the_stage_after_ppo_says(evaluated):
    stage = read_json(evaluated / "stages" / "evaluate.json")["metrics"]
    first, last = read_evaluations(evaluated)[0].numbers, read_evaluations(evaluated)[-1].numbers
    for name in ("reward", "p_positive", "judge_p_positive", "distinct_1", "distinct_2", "response_tokens",
                 "eos_fraction", "truncated_fraction"):  # fmt: skip
        assert (first[name], last[name]) == (stage[f"{name}_before"], stage[f"{name}_after"]), name
    for name in ("kl_seq_sum", "kl_token_mean", "win_rate"):
        assert last[name] == stage[name], name
    assert [last["win_rate_low"], last["win_rate_high"]] == stage["win_rate_ci95"]
    assert (first["win_rate"], first["reward_z"], first["judge_z"]) == (0.5, 0.0, 0.0)
    assert abs(first["kl_seq_sum"]) < 1e-5, "the policy before PPO is its own reference"


def test_numbers_follow_from_the_scores_in_the_line(evaluated):
    first, *_, last = read_evaluations(evaluated)
    assert last.draws == first.draws == tuple(range(6))
    assert last.numbers["reward"] == np.mean(last.rewards)
    rise = np.mean(np.array(last.judged) - first.judged) / np.std(first.judged)
    assert last.numbers["judge_z"] == pytest.approx(rise)
    assert last.numbers["gap"] == last.numbers["reward_z"] - last.numbers["judge_z"]
    assert len(last.texts) == 6
    assert "evaluated after update 4: reward " in (evaluated / "printed.txt").read_text(encoding="utf-8")


def test_a_run_that_is_cut_off_or_loses_its_learner_evaluates_each_update_once(train, evaluated, poison):
    """Update 4 is evaluated, then undone, then done and evaluated again; the run is stopped and goes on, too."""

    def stop_before_the_fourth(controls, update):
        if update == 4:
            controls.stop("enough")

    changes = (EVERY_TWO, "ppo.checkpoint_every=3")
    assert train(*changes, before_update=stop_before_the_fourth).error is not None
    poison(5)
    outcome = train(*changes).ok()
    assert tuple(event for event, _ in outcome.events()[-2:]) == ("learner_lost", "resumed")
    assert lines_of(outcome.folder) == lines_of(evaluated)
    identities = [json.loads(line)["identity"] for line in (outcome.folder / "evaluations.jsonl").open()]
    assert identities[:2] == ["0.0", "0.2"]
    assert identities[2].split(".") != ["0", "4"], "of the weights that live"


def test_evaluations_that_are_turned_on_later_measure_the_policy_before_ppo_all_the_same(train, evaluated):
    def stop_before_the_third(controls, update):
        if update == 3:
            controls.stop("enough")

    train("evaluate.every_updates=0", before_update=stop_before_the_third)
    outcome = train(EVERY_TWO).ok()
    found, expected = lines_of(outcome.folder), lines_of(evaluated)
    assert [line["step"] for line in found] == [0, 4, 6]
    assert found == [line for line in expected if line["step"] != 2]


# --- the alarm


def test_a_reward_that_is_the_opposite_of_the_judge_rings_the_alarm(train):
    outcome = train(
        "evaluate.every_updates=1",
        "evaluate.alarm.reward_rise=0.2",
        "ppo.optimizer.lr=3e-3",
        'reward_service.scorers=[{type="model", weight=-1.0}]',
    ).ok()
    told = [text for event, text in outcome.events() if event == "over_optimisation"]
    lines = read_evaluations(outcome.folder)
    rang = [line.step for line in lines if line.over_optimised]
    assert rang
    assert len(told) == sum(
        line.over_optimised and not before.over_optimised for before, line in itertools.pairwise(lines)
    ), "once each time it begins, not at every evaluation"
    assert "since update " in told[0]
    assert "since update " in outcome.output
    assert lines[-1].numbers["reward_z"] > 0 > lines[-1].numbers["judge_z"]


# --- what goes wrong


class Bench:
    """A supervisor and a transport whose answers are made here.

    Args:
        lost: how often fetching fails.
        unscored: whether no answer has a score.
    """

    def __init__(self, folder, tokenizer, config, *, lost=0, unscored=False):
        self.lost, self.unscored, self.notes, self.asked = lost, unscored, [], 0
        self.unscored_until, self.tracked = 100, []
        prompts = [Prompt(draw, draw, np.array([5, 6], np.int32), 4) for draw in range(3)]
        self.evaluations = HeldoutEvaluations(
            SimpleNamespace(config=config, folder=folder),
            Heldout(prompts, tokenizer, frozenset({2}), asked_of(config, prompts, "judge")),
            supervisor=self,
            transport=self,
            weights_before=lambda: WeightsHandle(Identity(-1, 0), None, 0, ()),
            metrics=RunMetrics(CollectorRegistry()),
            watch=Stopwatch(),
            track=self.tracked.append,
            note=lambda event, text: self.notes.append((event, text)),
            console=Console(quiet=True),
        )

    def sample(self, prompts, *, top_p, weights=None):
        self.asked += 1
        unscored = self.unscored and self.asked <= self.unscored_until
        rollouts = [
            Rollout(p.draw_index, 0, 0, 0, np.array([7, 8], np.int32), np.zeros(2, np.float32), Identity(0, 0), "stop")
            for p in prompts
        ]
        parts = {"judge": 0.5, "judge_p_positive": 0.6}
        judgements = [None if unscored else Judgement(p.draw_index, 0, 1.0, parts, "v") for p in prompts]
        causes = tuple(Unscored(p.draw_index, 0, "reward_error", "no mood") for p in prompts if unscored)
        reference = ReferenceChunk(tuple(np.zeros(2, np.float32) for _ in prompts))
        payloads = (RolloutChunk(tuple(prompts), tuple(rollouts), 1.0), JudgementChunk(tuple(judgements)), reference)
        return [ChunkHandle(0, tuple(range(len(prompts))), *payloads, Stats(), Stats(unscored=causes))]

    def weights(self):
        return None

    def publish(self, weights):
        pass

    def fetch(self, ref, timeout_s):
        if self.lost:
            self.lost -= 1
            raise MemberFailedError("its node is gone")
        return ref


@pytest.fixture
def bench(tiny, tiny_run, tmp_path):
    tokenizer = load_tokenizer(str(tiny_run / "models" / "sft"))
    return lambda *changes, **faults: Bench(tmp_path, tokenizer, tiny("evaluate.every_updates=1", *changes), **faults)


def test_answers_that_went_with_their_node_are_asked_for_again_and_not_for_ever(bench, tmp_path):
    once = bench(lost=1)
    once.evaluations.at(0)
    assert once.asked == 2
    assert [event for event, _ in once.notes] == ["evaluate_again"]
    (line,) = read_evaluations(tmp_path)
    assert line.numbers["reward"] == 1.0
    assert [row["step"] for row in once.tracked] == [0], "trackers are told"
    once.evaluations.at(0)
    assert once.asked == 2, "what is done is done"

    for_ever = bench(lost=100)
    (tmp_path / "evaluations.jsonl").unlink()
    with pytest.raises(MemberFailedError, match="its node is gone"):
        for_ever.evaluations.at(0)
    assert for_ever.asked == MAX_ATTEMPTS


def test_an_evaluation_without_any_score_is_left_out_and_says_why(bench, tmp_path):
    silent = bench(unscored=True)
    silent.evaluations.at(0)
    assert read_evaluations(tmp_path) == []
    ((event, text),) = silent.notes
    assert event == "evaluation_failed"
    assert "reward_error: no mood" in text


@pytest.mark.parametrize(
    "change", ["evaluate.top_p=0.5", "judge.positive_class=0", "judge.max_tokens=9", "ppo.temperature=0.5", "seed=8"]
)
def test_evaluations_that_were_asked_otherwise_are_not_compared(bench, tmp_path, change):
    bench(change).evaluations.at(0)
    bench().evaluations.at(1)
    fresh = bench()
    bench(change).evaluations.at(0)
    fresh.evaluations.at(0)
    ((event, text),) = fresh.notes
    assert (event, text) == ("evaluations_dropped", f"earlier evaluations differ in {change.split('=')[0]}: they go")
    assert [line.step for line in read_evaluations(tmp_path)] == [0]
    again = bench()
    again.evaluations.at(1)
    assert again.notes == []
    assert [line.step for line in read_evaluations(tmp_path)] == [0, 1]


def test_evaluations_by_another_judge_or_of_other_prompts_are_told_apart(tiny):
    prompts = [Prompt(draw, draw, np.array([5, 6 + draw], np.int32), 4) for draw in range(3)]
    asked = asked_of(tiny(), prompts, "judge")
    assert differences(asked, asked_of(tiny(), list(prompts), "judge")) == []
    assert differences(asked, asked_of(tiny(), prompts, "another")) == ["judge"]
    for others in (prompts[:2], [replace(p, max_new_tokens=5) for p in prompts], [*prompts[:2], prompts[0]]):
        assert differences(asked, asked_of(tiny(), others, "judge")) == ["prompts"]


def test_without_scores_before_ppo_nothing_is_said_of_the_change(bench, tmp_path):
    """A policy that is its own baseline would win half, rise by nothing, and silence the alarm."""
    silent = bench(unscored=True)
    silent.evaluations.at(0)
    silent.unscored_until = 2
    silent.evaluations.at(3)
    (line,) = read_evaluations(tmp_path)
    assert (line.step, line.numbers["reward"], line.numbers["judge"]) == (3, 1.0, 0.5)
    assert not {"win_rate", "win_rate_low", "win_rate_high", "reward_z", "judge_z", "gap"} & line.numbers.keys()
    assert not line.over_optimised
    assert [event for event, _ in silent.notes] == ["evaluation_failed", "evaluation_failed", "evaluation_uncompared"]
    assert point_of(line) is None
    silent.evaluations.at(4)
    assert [line.step for line in read_evaluations(tmp_path)] == [0, 3, 4], "the baseline is asked for again"
    assert read_evaluations(tmp_path)[-1].numbers["gap"] == 0.0
