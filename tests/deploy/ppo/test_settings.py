"""Settings that change while PPO trains: when they count, that a run which is cut off meets them again, and where they
are told.
"""

import itertools
import json
import math
from dataclasses import replace
from datetime import UTC, datetime

import pytest
import torch

from common.config_file import load_config
from common.errors import ConfigError
from common.hashing import file_hash
from common.kl_config import FixedKL
from common.ppo_config import PPOConfig
from common.run_settings import RunSettings
from deploy.control.run_status import SettingsRequest
from deploy.ppo.settings_journal import Change, Journal, read_journal
from deploy.ppo.steering import check_change
from deploy.report.summary import write_summary
from deploy.run_folder.files import write_json
from learner.ppo import PPOLearner

OFF, ADAPTIVE = {"type": "fixed", "coef": 0}, {"type": "adaptive"}
EVERY_TWO = ("ppo.checkpoint_every=2", "ppo.keep_last=3")
LATER = SettingsRequest(temperature=0.7, learning_rate=5e-4, reason="it swings")
BEFORE = {"temperature": 1.0, "learning_rate": 1e-3, "kl_coef": 0.1}
AFTER = {"temperature": 0.7, "learning_rate": 5e-4, "kl_coef": 0.1}


def changing(at, wanted=LATER):
    """An interference: the change is asked for, once, while update `at` - 1 runs, so that update `at` is the first."""
    asked = []

    def interfere(controls, number):
        if number == at - 1 and not asked:
            asked.append(controls.change(wanted))

    return interfere


def killing(at, first=lambda controls, number: None):
    """An interference after which nothing is saved, as after kill -9."""

    def interfere(controls, number):
        first(controls, number)
        if number == at:
            raise KeyboardInterrupt

    return interfere


def assert_same(mine, theirs):
    """Weights, trajectories, samples; and metrics.jsonl byte for byte but for seconds, lineage and what was undone."""
    mine.assert_same_as(theirs)
    rows = [[(row["step"], row["metrics"], row["settings"]) for row in run.rows()] for run in (mine, theirs)]
    assert json.dumps(rows[0]) == json.dumps(rows[1])


@pytest.fixture(scope="module")
def changed(once):
    """The run with the change at update 3 and nobody who disturbs it."""
    return once(*EVERY_TWO, before_update=changing(3))


def test_a_change_counts_from_the_next_update_on_and_every_row_says_so(changed, undisturbed):
    assert [row["settings"] for row in changed.rows()] == [BEFORE] * 2 + [AFTER] * 4
    assert [row["metrics"]["learning_rate"] for row in changed.rows()] == [1e-3] * 2 + [5e-4] * 4
    plain = undisturbed(*EVERY_TWO)
    names = [f"trajectories/update_{step:06d}.safetensors" for step in range(1, 7)]
    same = [file_hash(changed.folder / name) == file_hash(plain.folder / name) for name in names]
    assert same == [True, True, False, False, False, False]
    assert not (plain.folder / "steering.json").exists(), "what nobody changes leaves no trace"


def test_a_change_is_told_in_journal_events_metrics_report_and_summary(changed):
    [change] = read_journal(changed.folder).changes
    assert (change.at_step, change.who, change.reason, change.lineage) == (2, "operator", "it swings", 0)
    told = "from update 3 on: temperature 1 to 0.7, learning_rate 0.001 to 0.0005 (operator: it swings)"
    assert ("settings", told) in changed.events()
    value = changed.registry.get_sample_value
    assert value("minichatgpt_setting", {"setting": "learning_rate"}) == 5e-4
    assert value("minichatgpt_setting", {"setting": "kl_coef"}) == 0.1
    assert value("minichatgpt_setting", {"setting": "kl_target"}) is None
    assert value("minichatgpt_setting_changes_total", {"setting": "temperature"}) == 1
    assert value("minichatgpt_setting_changes_total", {"setting": "kl_coef"}) == 0
    assert write_summary(changed.folder)["settings_changed"] == 2


@pytest.mark.parametrize(
    "cut_at", [pytest.param(2, marks=pytest.mark.slow), 4, pytest.param(6, marks=pytest.mark.slow)]
)
def test_a_run_that_is_cut_off_and_resumed_meets_the_same_settings_at_the_same_updates(train, changed, cut_at):
    """The newest checkpoint is of update 2 or 4, or there is none; at 2 the change was never in force before."""
    cut = train(*EVERY_TWO, before_update=killing(cut_at, changing(3)))
    assert isinstance(cut.error, KeyboardInterrupt)
    assert_same(train(*EVERY_TWO).ok(), changed)


def test_a_learner_that_is_lost_after_a_change_leaves_the_same_bytes(train, changed, poison):
    poison(5)
    outcome = train(*EVERY_TWO, before_update=changing(3)).ok()
    assert outcome.rows()[-1]["identity"] == "1.6"
    assert_same(outcome, changed)
    assert len(read_journal(outcome.folder).changes) == 1


def test_an_order_while_updates_are_done_again_counts_at_once_and_loses_nothing_that_was_wanted(train):
    """Update 5 had another rate when the run was killed; before it comes again, the temperature is changed."""
    settings = ("ppo.checkpoint_every=0", "ppo.keep_last=3")
    train(*settings, before_update=killing(5, changing(5, SettingsRequest(learning_rate=5e-4))))
    outcome = train(*settings, before_update=changing(3, SettingsRequest(temperature=0.7))).ok()
    assert [row["settings"] for row in outcome.rows()] == [BEFORE] * 2 + [AFTER] * 4
    assert [change.at_step for change in read_journal(outcome.folder).dead] == [4]


@pytest.mark.slow
def test_a_change_between_two_attempts_of_an_update_comes_again_between_them(train, monkeypatch):
    """No step of update 3's first attempt is finite; while it runs, the rate is lowered for the second one."""
    loss = PPOLearner._loss
    monkeypatch.setattr(
        PPOLearner,
        "_loss",
        lambda learner, *rest: loss(learner, *rest) * (torch.nan if is_first_attempt(learner, rest[0]) else 1.0),
    )

    def is_first_attempt(learner, part):
        return learner.step == 2 and learner._settings.learning_rate == 1e-3

    wanted = SettingsRequest(learning_rate=5e-4)
    whole = train(*EVERY_TWO, name="whole", before_update=changing(4, wanted)).ok()
    assert [row["settings"]["learning_rate"] for row in whole.rows()] == [1e-3, 1e-3, 5e-4, 5e-4, 5e-4, 5e-4]
    assert whole.ledger()["dropped"] == {"nonfinite_update": 32}
    assert [change.at_step for change in read_journal(whole.folder).changes] == [2]
    train(*EVERY_TWO, before_update=killing(4, changing(4, wanted)))
    resumed = train(*EVERY_TWO).ok()
    assert_same(resumed, whole)


@pytest.mark.slow
def test_again_throws_the_journal_away(train, undisturbed):
    train("ppo.updates=2", before_update=changing(2)).ok()
    again = train(*EVERY_TWO, again=True).ok()
    again.assert_same_as(undisturbed(*EVERY_TWO))
    assert not (again.folder / "steering.json").exists()


@pytest.mark.slow
def test_changes_of_another_configuration_do_not_count_and_this_is_said(train):
    train("ppo.checkpoint_every=0", before_update=killing(3, changing(2)))
    other = train("ppo.updates=2", "ppo.temperature=0.9").ok()
    assert [row["settings"]["temperature"] for row in other.rows()] == [0.9, 0.9]
    assert ("settings", "1 changes of another configuration do not count any more") in other.events()
    assert not (other.folder / "steering.json").exists()


# --- that temperature rides consistently


@pytest.mark.parametrize("reference", ["service", pytest.param("shared_trunk", marks=pytest.mark.slow)])
def test_an_unchanged_policy_has_no_kl_at_a_changed_temperature(train, reference):
    """The whole way: worker, reference and learner divide by the same temperature, whichever it is."""
    settings = ("ppo.updates=1", f"ppo.reference={reference}", "ppo.trainable_layers=1")
    train(*settings, before_update=killing(1))
    plain = train(*settings, name="plain").ok()
    start = RunSettings.of(load_config(plain.folder / "config.toml").ppo)
    change = Change(at_step=0, from_draw=0, settings=replace(start, temperature=0.5), who="operator", reason="",
                    time=datetime.now(UTC), lineage=0)  # fmt: skip
    write_json(plain.folder.parent / "run" / "steering.json", Journal(start=start).add(change).model_dump(mode="json"))
    [cool], [warm] = train(*settings).ok().rows(), plain.rows()
    assert (cool["settings"]["temperature"], warm["settings"]["temperature"]) == (0.5, 1.0)
    assert cool["metrics"]["entropy"] < 0.9 * warm["metrics"]["entropy"]
    for row in (cool, warm):
        assert abs(row["metrics"]["kl_seq_sum"]) < 1e-5
        assert row["metrics"]["kl_k3_token_mean"] < 1e-9
        assert row["metrics"]["logprob_gap_max"] < 1e-5


# --- what is refused, and what the settings do


REFUSED = [
    ({}, {"kl_target": 3.0}, r'kl_target=3 is of ppo\.kl\.type = "adaptive", and this run has "fixed"; change kl_coef'),
    ({"kl": ADAPTIVE}, {"kl_coef": 0.3}, r'kl_coef=0\.3 is of ppo\.kl\.type = "fixed"; this run has "adaptive"'),
    ({"kl": OFF, "reference": "none"}, {"kl_coef": 0.3}, "must stay 0 in this run: .*nothing to measure KL against"),
    ({"kl": OFF, "kl_loss_coef": 0.1}, {"kl_coef": 0.3}, "must stay 0 in this run: KL would count twice"),
    (
        {"kl": OFF, "kl_loss_coef": 0.1, "advantage": "group_norm", "samples_per_prompt": 4},
        {"kl_coef": 0.3},
        "must stay 0 in this run",
    ),
]


@pytest.mark.parametrize(("config", "wanted", "message"), REFUSED)
def test_a_setting_that_the_configuration_rules_out_is_refused(config, wanted, message):
    ppo = PPOConfig.model_validate({"data": ["texts"], "updates": 9} | config)
    with pytest.raises(ConfigError, match=message):
        check_change(ppo, SettingsRequest(**wanted))


def test_a_coefficient_may_rise_from_0_where_nothing_speaks_against_it():
    check_change(PPOConfig(data=["texts"], updates=9, kl=FixedKL(coef=0)), SettingsRequest(kl_coef=0.3, temperature=2))


@pytest.mark.parametrize(
    "wanted",
    [
        {}, {"reason": "none"}, {"temperature": 0}, {"temperature": 10.1}, {"temperature": True},
        {"learning_rate": -1e-9}, {"learning_rate": math.nan}, {"kl_coef": math.inf}, {"kl_coef": -0.1},
        {"kl_target": 0}, {"temperature": 1, "reason": "two\nlines"}, {"clip_eps": 0.1}, {"temperature": "1"},
    ],
)  # fmt: skip
def test_values_that_no_run_can_have_are_refused(wanted):
    with pytest.raises(ValueError, match="SettingsRequest"):
        SettingsRequest(**wanted)


def test_a_schedule_multiplies_the_changed_peak_and_a_kl_target_steers_the_coefficient(train):
    """By hand: rates fall linearly to a half; the coefficient moves by the clipped error times n over horizon."""
    settings = ("ppo.kl={type='adaptive', coef=0.2, target=100, horizon=64}", "ppo.lr_final_fraction=0.5")
    outcome = train(*settings, before_update=changing(4, SettingsRequest(learning_rate=4e-3, kl_target=1e-6))).ok()
    rows = outcome.rows()
    assert [row["settings"].get("kl_target") for row in rows] == [100] * 3 + [1e-6] * 3
    shares = [1 - 0.5 * step / 5 for step in range(6)]
    peaks = [1e-3] * 3 + [4e-3] * 3
    rates = [peak * share for peak, share in zip(peaks, shares, strict=True)]
    assert [row["metrics"]["learning_rate"] for row in rows] == pytest.approx(rates, rel=1e-12)
    # The measure of an update moves the coefficient of the next one: far below the old target, far above the new one.
    factors = [0.9, 0.9, 0.9, 1.1, 1.1]
    assert all(row["metrics"]["kl_seq_sum"] > 1e-5 for row in rows[3:5])
    coefs = [row["metrics"]["kl_coef"] for row in rows]
    assert [after / before for before, after in itertools.pairwise(coefs)] == pytest.approx(factors, rel=1e-12)
