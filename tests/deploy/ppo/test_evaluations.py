"""Held-out prompts while PPO learns: what is trained does not notice, what is measured is done once, and rings."""

import itertools
import json
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
from deploy.evaluation_file import read_evaluations
from deploy.evaluations import MAX_ATTEMPTS, Heldout, HeldoutEvaluations
from deploy.files import read_json
from deploy.ppo_stage import clear_samples
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
    from deploy.summary import write_summary

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
        prompts = [Prompt(draw, draw, np.array([5, 6], np.int32), 4) for draw in range(3)]
        self.evaluations = HeldoutEvaluations(
            SimpleNamespace(config=config, folder=folder),
            Heldout(prompts, tokenizer, "judge"),
            supervisor=self,
            transport=self,
            weights_before=lambda: WeightsHandle(Identity(-1, 0), None, 0, ()),
            metrics=RunMetrics(CollectorRegistry()),
            watch=Stopwatch(),
            note=lambda event, text: self.notes.append((event, text)),
            console=Console(quiet=True),
        )

    def sample(self, prompts, *, top_p):
        self.asked += 1
        rollouts = [
            Rollout(p.draw_index, 0, 0, 0, np.array([7, 8], np.int32), np.zeros(2, np.float32), Identity(0, 0), "stop")
            for p in prompts
        ]
        parts = {"judge": 0.5, "judge_p_positive": 0.6}
        judgements = [None if self.unscored else Judgement(p.draw_index, 0, 1.0, parts, "v") for p in prompts]
        unscored = tuple(Unscored(p.draw_index, 0, "reward_error", "no mood") for p in prompts if self.unscored)
        reference = ReferenceChunk(tuple(np.zeros(2, np.float32) for _ in prompts))
        payloads = (RolloutChunk(tuple(prompts), tuple(rollouts)), JudgementChunk(tuple(judgements)), reference)
        return [ChunkHandle(0, tuple(range(len(prompts))), *payloads, Stats(), Stats(unscored=unscored))]

    def fetch(self, ref, timeout_s):
        if self.lost:
            self.lost -= 1
            raise MemberFailedError("its node is gone")
        return ref


@pytest.fixture
def bench(tiny, tiny_run, tmp_path):
    tokenizer = load_tokenizer(str(tiny_run / "models" / "sft"))
    return lambda **faults: Bench(tmp_path, tokenizer, tiny("evaluate.every_updates=1"), **faults)


def test_answers_that_went_with_their_node_are_asked_for_again_and_not_for_ever(bench, tmp_path):
    once = bench(lost=1)
    once.evaluations.at(0)
    assert once.asked == 2
    assert [event for event, _ in once.notes] == ["evaluate_again"]
    (line,) = read_evaluations(tmp_path)
    assert line.numbers["reward"] == 1.0
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


def test_evaluations_by_another_judge_are_not_compared(bench, tmp_path):
    line = {"step": 1, "judge_hash": "other", "prompts": 3, "numbers": {}}
    (tmp_path / "evaluations.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    fresh = bench()
    fresh.evaluations.at(0)
    assert [event for event, _ in fresh.notes] == ["evaluations_dropped"]
    assert [line.step for line in read_evaluations(tmp_path)] == [0]
