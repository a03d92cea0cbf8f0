"""Guard rails in real runs of `tiny`: what raises each of them, and what each action does."""

import itertools
import re
from pathlib import Path

import numpy as np
import pytest

from common.checkpoint_store import CheckpointStore
from common.errors import RunStopped
from common.hashing import file_hash
from common.metric_labels import GUARDS
from deploy.control.run_status import SettingsRequest
from deploy.exit_codes import GUARDED
from deploy.local import LocalLearner
from deploy.ppo import recovery
from deploy.ppo.settings_journal import read_journal
from deploy.ppo.steering import Steering
from deploy.ppo.supervisor import Supervisor
from deploy.report.curves import GROUPS
from deploy.report.guards import guard_rows, guards_sentence
from deploy.report.report import render
from deploy.run_folder.contents import read_run
from learner.trajectory_file import read_trajectories

BATCH = 32
EVERY_TWO = ("ppo.checkpoint_every=2", "ppo.keep_last=9")
FAST = "ppo.optimizer.lr=0.01"
"""With it the KL is near 12 nats in what update 2 is trained on; after that it goes up and down, on each kind of
machine in another way, for rounding grows."""
RISING = ("ppo.optimizer.lr=0.004", "ppo.lr_warmup_updates=5")
"""KL by update, on any machine: 0, 0.2, 0.7, 0.9, 2.8 and 4 to 5 nats."""
AT_FIVE = (*RISING, "guards.kl.max_nats=1.7", "guards.kl.patience_updates=1", *EVERY_TWO)
ROLL_BACK = (*AT_FIVE, "guards.kl.action=roll_back")
WILD = "ppo.optimizer.lr=0.05"


def draws_of(outcome):
    """Prompts by update, of the weights as they are in the end."""
    files = sorted((outcome.folder / "trajectories").iterdir())
    return [sorted(read_trajectories(file)["draw_index"].tolist()) for file in files]


def events(outcome, kind):
    return [text for event, text in outcome.events() if event == kind]


def killed_before(update, *, lineage):
    """As if the process were killed: nothing of ours handles it, so no checkpoint is written."""

    def interfere(controls, number):
        if number == update and controls.status().lineage == lineage:
            raise KeyboardInterrupt

    return interfere


def cool_down(controls, number):
    """From a low temperature on, entropy is low and words come again."""
    if number == 3:
        controls.change(SettingsRequest(temperature=0.1))


# --- every guard


@pytest.fixture(scope="module")
def alarmed(once):
    """A run in which everything goes wrong at once, and all guards only warn. Where it would be chance whether it does,
    it is made sure: rises of reward and judge are made up, and from update 4 on the policy is sampled nearly greedily.
    """
    rises = (rise for number in itertools.count() for rise in (float(number), 0.0))
    limits = (
        "guards.baseline_updates=1",
        *(f"guards.{guard}.patience_updates=1" for guard in ("kl", "entropy", "clip_fraction", "repetition", "length")),
        "guards.length.max_ratio=1.1",
        "evaluate.every_updates=2",
        "evaluate.alarm={reward_rise=0.5, judge_share=0.1, in_a_row=1}",
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("deploy.evaluation.evaluations.standardised_rise", lambda _before, _now: next(rises))
        return once(WILD, *limits, before_update=cool_down)


@pytest.mark.parametrize(
    ("guard", "says"),
    [
        ("kl", "nats per response; at most 30 (guards.kl.max_nats)"),
        ("entropy", "0.3 times that of the first updates, guards.entropy.min_fraction"),
        ("clip_fraction", "of clipped tokens; at most 0.3 (guards.clip_fraction.max_fraction)"),
        ("repetition", "of repeated trigrams; at most 0.3 (guards.repetition.max_fraction)"),
        ("length", "first 5.25; within 1/1.1 to 1.1 times those of the first updates"),
        ("judge_gap", "in standard deviations; (evaluate.alarm)"),
    ],
)
def test_each_guard_is_raised_in_a_run_that_goes_wrong_in_its_way(alarmed, guard, says):
    raised = [text for text in events(alarmed, "guard_alarm") if text.startswith(f"guard {guard} ")]
    assert raised
    assert says in raised[0]
    assert alarmed.registry.get_sample_value(
        "minichatgpt_guard_actions_total", {"guard": guard, "action": "warn"}
    ) == len(raised)


def test_warning_changes_nothing_of_what_is_trained(alarmed, once):
    off = [f"guards.{guard}.action=off" for guard in ("kl", "entropy", "clip_fraction", "repetition", "length")]
    plain = once(WILD, *off, "guards.judge_gap.action=off", before_update=cool_down)
    assert not [event for event, _ in plain.events() if event.startswith("guard")]
    assert [row["metrics"] for row in alarmed.rows()] == [row["metrics"] for row in plain.rows()]
    weights = "models/ppo/model.safetensors"
    assert file_hash(alarmed.folder / weights) == file_hash(plain.folder / weights)


def test_the_report_has_a_line_for_each_alarm_that_was_in_the_log_and_marks_it_in_the_curves(alarmed):
    run = read_run(alarmed.folder)
    rows = guard_rows(run)
    told = [text.partition(": ")[2] for text in events(alarmed, "guard_alarm")]
    assert [row.text for row in rows] == told
    assert guards_sentence(rows) == f"Guard rails: {len(told)} alarms."
    page = render(run)
    assert page.count(">A1<") + page.count(">A1 ") >= 1 + len(GROUPS)
    assert all(f"alarm of guard {guard}<" in page for guard in GUARDS)


def test_a_sound_run_raises_nothing(undisturbed):
    assert undisturbed().events() == []


@pytest.mark.slow
def test_a_reward_for_repetition_is_stopped_by_the_guard_that_looks_for_it(train, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).with_name("callables")))
    scorer = "{type='function', name='repeated', callable='repeating_rewards:repeated'}"
    outcome = train(
        f"reward_service.scorers=[{scorer}]", "ppo.updates=40", "ppo.optimizer.lr=5e-3", "guards.kl.action=off",
        "guards.repetition.action=stop",
    )  # fmt: skip
    with pytest.raises(RunStopped, match=r"guard repetition: .* of repeated trigrams; at most 0\.3"):
        outcome.ok()
    rows = outcome.rows()
    assert len(rows) < 40
    assert [row["metrics"]["repetition"] > 0.3 for row in rows[-4:]] == [False, True, True, True]
    assert rows[-1]["metrics"]["score_mean"] > rows[0]["metrics"]["score_mean"] + 1, "by the score all is well"


def test_an_alarm_is_shown_while_it_lasts_and_cleared_when_all_is_well_again(train):
    measured = [row["metrics"]["kl_seq_sum"] for row in train(FAST, "guards.kl.action=off").ok().rows()]
    falls = [before - after for before, after in itertools.pairwise(measured)]
    worst = int(np.argmax(falls))
    assert falls[worst] > 1, "this rate makes the KL go up and down"
    limit = (measured[worst] + measured[worst + 1]) / 2
    seen = {}

    def look(controls, number):
        seen[number] = [alarm.since_step for alarm in controls.status().alarms if alarm.guard == "kl"]

    outcome = train(
        FAST, f"guards.kl.max_nats={limit}", "guards.kl.patience_updates=1", before_update=look, again=True
    ).ok()
    since, expected, cleared = None, {1: []}, []
    for update, kl in enumerate(measured, start=1):
        if kl <= limit and since is not None:
            cleared.append(f"guard kl is well again after update {update}")
        since = (since or update) if kl > limit else None
        expected[update + 1] = [since] if since is not None else []
    assert seen == {number: expected[number] for number in range(1, 7)}
    told = [text for text in events(outcome, "guard_cleared") if text.startswith("guard kl ")]
    assert told == cleared != []
    is_raised = outcome.registry.get_sample_value("minichatgpt_guard_alarm", {"guard": "kl"})
    assert is_raised == (since is not None)
    assert outcome.registry.get_sample_value("minichatgpt_guard_alarm", {"guard": "length"}) == 0


# --- lowering the learning rate

LOWER = (FAST, "guards.kl.max_nats=11.5", "guards.kl.patience_updates=1", *EVERY_TWO,
         "guards.kl.action=lower_learning_rate", "guards.lower_factor=0.1")  # fmt: skip


@pytest.fixture(scope="module")
def lowered(once):
    return once(*LOWER)


def test_the_learning_rate_is_lowered_once_before_the_next_update_and_noted_as_a_guard_s_change(lowered):
    rates = [row["settings"]["learning_rate"] for row in lowered.rows()]
    assert rates == pytest.approx([0.01] * 2 + [0.001] * 4)
    [change] = read_journal(lowered.folder).changes
    assert (change.who, change.at_step) == ("guard", 2)
    [found] = re.findall(r"^guard kl: KL of ([0-9.]+) nats per response; at most 11\.5 \(", change.reason)
    assert float(found) > 11.5
    count = {"guard": "kl", "action": "lower_learning_rate"}
    assert lowered.registry.get_sample_value("minichatgpt_guard_actions_total", count) == 1


@pytest.mark.parametrize("update", [3, pytest.param(4, marks=pytest.mark.slow)])
def test_a_run_that_is_killed_after_that_lowers_it_no_second_time(train, lowered, update):
    """Before update 3 the rate has just been lowered, and it goes on from update 2: the guard comes there again."""
    killed = train(*LOWER, before_update=killed_before(update, lineage=0))
    assert isinstance(killed.error, KeyboardInterrupt)
    assert killed.checkpoints() == ["step_000002"]
    resumed = train(*LOWER).ok()
    resumed.assert_same_as(lowered)
    assert [row["settings"] for row in resumed.rows()] == [row["settings"] for row in lowered.rows()]
    journal = read_journal(resumed.folder)
    assert (len(journal.changes), journal.dead) == (1, ()), "it stands in the journal as it did"


# --- stopping


def test_a_guard_ends_the_run_with_a_checkpoint_and_an_exit_code_of_its_own(train):
    stopped = train(*AT_FIVE, "guards.kl.action=stop")
    with pytest.raises(RunStopped, match=r"guard kl: KL of 2\.\d+ nats .* stopped after update 5 of 6") as caught:
        stopped.ok()
    assert caught.value.exit_code == GUARDED
    assert stopped.checkpoints() == ["step_000002", "step_000004", "step_000005"]
    again = train(*AT_FIVE, "guards.kl.action=stop")
    assert isinstance(again.error, RunStopped), "the same command stops at the same place"
    assert len(again.rows()) == 5
    gone_on = train(*AT_FIVE).ok()
    assert [row["step"] for row in gone_on.rows()] == [1, 2, 3, 4, 5, 6]


# --- rolling back


@pytest.fixture(scope="module")
def rolled_back(once):
    return once(*ROLL_BACK)


def test_a_rollback_goes_on_from_before_the_harm_with_prompts_that_were_never_drawn(rolled_back):
    """The KL of update 5 comes from update 4 at the latest, so that checkpoint 4 is no place to go back to."""
    assert [row["identity"] for row in rolled_back.rows()] == ["0.1", "0.2", "1.3", "1.4", "1.5", "1.6"]
    first, second, *others = draws_of(rolled_back)
    assert first + second == list(range(2 * BATCH))
    assert sorted(np.concatenate(others)) == list(range(5 * BATCH, 9 * BATCH)), "update 5 was the last to draw"
    [rollback] = read_journal(rolled_back.folder).rollbacks
    assert (rollback.from_step, rollback.to_step, rollback.next_draw_index, rollback.lineage) == (5, 2, 5 * BATCH, 0)


def test_what_is_given_up_counts_as_rolled_back_and_no_checkpoint_of_it_is_left(rolled_back):
    ledger = rolled_back.ledger()
    assert (ledger["dispatched"], ledger["rolled_back"], ledger["trained"]) == (9 * BATCH, 3 * BATCH, 6 * BATCH)
    assert all(row["ledger"]["trained"] == BATCH * row["step"] for row in rolled_back.rows())
    assert rolled_back.checkpoints() == ["step_000002", "step_000004", "step_000006"]
    identities = [row["identity"] for row in rolled_back.rows()]
    assert len(identities) == len(set(identities)) == 6


def test_a_rollback_is_in_log_metrics_and_status(rolled_back):
    kinds = [event for event, _ in rolled_back.events()]
    assert kinds[:4] == ["guard_alarm", "rolled_back", "guard_cleared", "resumed"]
    assert "learner_lost" not in kinds
    [told] = events(rolled_back, "rolled_back")
    assert told.startswith("guard kl: KL of 2.")
    assert "nats per response; at most 1.7" in told
    assert told.endswith("back from update 5 to 2, and on with other prompts")
    assert rolled_back.registry.get_sample_value("minichatgpt_rollbacks_total") == 1
    count = {"guard": "kl", "action": "roll_back"}
    assert rolled_back.registry.get_sample_value("minichatgpt_guard_actions_total", count) == 1


def test_the_report_tells_the_rollback_and_why_and_alarms_of_what_is_left(rolled_back):
    rows = guard_rows(read_run(rolled_back.folder))
    assert [row.label[0] for row in rows] == ["A"] * (len(rows) - 1) + ["R"]
    assert (rows[-1].at_step, rows[-1].updates, rows[-1].what) == (2, "5 back to 2", "rollback")
    assert "nats per response; at most 1.7" in rows[-1].text
    assert guards_sentence(rows[-1:]) == "Guard rails: 1 rollback."


@pytest.mark.parametrize("update", [3, *(pytest.param(late, marks=pytest.mark.slow) for late in (4, 5))])
def test_a_run_that_is_killed_after_a_rollback_goes_on_as_if_it_were_not(train, rolled_back, update):
    """Before update 3 and 4 there is no checkpoint after the rollback: cursor and count are in the journal alone."""
    killed = train(*ROLL_BACK, before_update=killed_before(update, lineage=1))
    assert isinstance(killed.error, KeyboardInterrupt)
    resumed = train(*ROLL_BACK).ok()
    resumed.assert_same_as(rolled_back)
    assert len(read_journal(resumed.folder).rollbacks) == 1


STEPS_OF_A_ROLLBACK = (
    (CheckpointStore, "_remove"),
    (LocalLearner, "load"),
    (Steering, "roll_back_to"),
    (recovery, "rewind"),
    (Supervisor, "roll_back"),
)


@pytest.mark.slow
@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize(("owner", "name"), STEPS_OF_A_ROLLBACK, ids=[name for _, name in STEPS_OF_A_ROLLBACK])
def test_a_run_that_is_killed_in_the_middle_of_a_rollback_ends_as_if_it_were_not(
    train, rolled_back, monkeypatch, owner, name, is_done
):
    """Whether it comes to the rollback again, or goes on from it; what was killed is done or is not."""
    step, roll_back, begun = getattr(owner, name), recovery.Recovery._roll_back, []

    def begin(*arguments):
        begun.append(True)
        roll_back(*arguments)

    def killed(*arguments, **named):
        if begun and not is_done:
            raise KeyboardInterrupt
        result = step(*arguments, **named)
        if begun:
            raise KeyboardInterrupt
        return result

    with monkeypatch.context() as patch:
        patch.setattr(recovery.Recovery, "_roll_back", begin)
        patch.setattr(owner, name, killed)
        assert isinstance(train(*ROLL_BACK).error, KeyboardInterrupt)
    resumed = train(*ROLL_BACK).ok()
    resumed.assert_same_as(rolled_back)
    assert resumed.checkpoints() == rolled_back.checkpoints()
    assert len(read_journal(resumed.folder).rollbacks) == 1
    ledger = resumed.ledger()
    assert ledger["dispatched"] == ledger["trained"] + ledger["rolled_back"]


@pytest.mark.slow
def test_a_learner_that_is_lost_after_a_rollback_meets_the_new_prompts_again(train, rolled_back, poison):
    poison(4, times=2)  # once before the rollback, which its samples never see, and once after it
    outcome = train(*ROLL_BACK).ok()
    outcome.assert_same_as(rolled_back)
    assert len(events(outcome, "learner_lost")) == 2


@pytest.mark.slow
def test_after_max_rollbacks_the_run_stops_also_if_it_was_killed_in_between(train):
    eager = (WILD, "ppo.checkpoint_every=1", "ppo.keep_last=9", "guards.kl.max_nats=8", "guards.kl.patience_updates=1",
             "guards.kl.action=roll_back", "guards.cooldown_updates=0", "guards.max_rollbacks=2")  # fmt: skip
    train(*eager, before_update=killed_before(2, lineage=1))
    stopped = train(*eager)
    with pytest.raises(RunStopped, match=r"after 2 rollbacks \(guards\.max_rollbacks\)") as caught:
        stopped.ok()
    assert caught.value.exit_code == GUARDED
    assert len(read_journal(stopped.folder).rollbacks) == 2


@pytest.mark.slow
def test_without_any_checkpoint_a_rollback_goes_to_the_policy_before_ppo_and_on_with_other_prompts(train):
    outcome = train(*ROLL_BACK, "ppo.checkpoint_every=0").ok()
    assert {row["identity"].split(".")[0] for row in outcome.rows()} == {"1"}
    assert sorted(np.concatenate(draws_of(outcome))) == list(range(5 * BATCH, 11 * BATCH))
    assert outcome.ledger()["rolled_back"] == 5 * BATCH


@pytest.mark.slow
def test_where_the_first_checkpoint_is_of_the_harm_the_policy_before_ppo_is_gone_back_to(train):
    outcome = train(*ROLL_BACK, "ppo.checkpoint_every=4", "ppo.keep_last=1").ok()
    [rollback] = read_journal(outcome.folder).rollbacks
    assert (rollback.from_step, rollback.to_step) == (5, 0)
    [told] = events(outcome, "rolled_back")
    assert told.endswith("back from update 5 to 0, and on with other prompts")
    assert {row["identity"].split(".")[0] for row in outcome.rows()} == {"1"}
    assert outcome.ledger()["rolled_back"] == 5 * BATCH


@pytest.mark.slow
def test_where_those_of_before_the_harm_are_kept_no_longer_the_oldest_is_gone_back_to(train):
    outcome = train(*ROLL_BACK, "ppo.checkpoint_every=2", "ppo.keep_last=1").ok()
    [rollback] = read_journal(outcome.folder).rollbacks
    assert (rollback.from_step, rollback.to_step) == (5, 4)
    assert [row["identity"] for row in outcome.rows()] == ["0.1", "0.2", "0.3", "0.4", "1.5", "1.6"]


@pytest.mark.slow
def test_beginning_anew_forgets_rollbacks(train):
    train(*ROLL_BACK)
    outcome = train(*ROLL_BACK, "guards.kl.action=off", again=True).ok()
    assert read_journal(outcome.folder) is None
    assert draws_of(outcome)[0] == list(range(BATCH))
    assert file_hash(outcome.folder / "models/ppo/model.safetensors")
