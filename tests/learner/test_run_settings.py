"""Settings that are changed at run time train as a configuration with those values would, bit for bit."""

from dataclasses import replace

import pytest

from common.ppo_config import PPOConfig
from common.run_settings import RunSettings

REFERENCE = {"reference": "service", "kl": {"type": "fixed", "coef": 0.1}}
ADAPTIVE = {"type": "adaptive", "coef": 0.2, "horizon": 100}


def adamw(share):
    return {"optimizer": {"type": "adamw", "lr": 1e-3 * share, "weight_decay": 0.1}, "value_head_lr": 1e-2 * share}


def muon(share):
    return {"optimizer": {"type": "muon", "lr": 0.02 * share, "adamw_lr": 1e-3 * share}, "value_head_lr": 1e-2 * share}


@pytest.mark.parametrize(
    ("configured", "change", "as_if"),
    [
        (adamw(1), {"learning_rate": 0.5e-3}, adamw(0.5)),
        (muon(1), {"learning_rate": 0.005}, muon(0.25)),
        (adamw(1) | {"lr_final_fraction": 0.5, "updates": 5}, {"learning_rate": 2e-3},
         adamw(2) | {"lr_final_fraction": 0.5, "updates": 5}),
        (REFERENCE, {"kl_coef": 0.5}, REFERENCE | {"kl": {"type": "fixed", "coef": 0.5}}),
        (REFERENCE, {"kl_coef": 0.0}, REFERENCE | {"kl": {"type": "fixed", "coef": 0.0}}),
        (REFERENCE, {"temperature": 0.6}, REFERENCE | {"temperature": 0.6}),
        (REFERENCE | {"kl": ADAPTIVE | {"target": 6.0}}, {"kl_target": 1e-6},
         REFERENCE | {"kl": ADAPTIVE | {"target": 1e-6}}),
    ],
)  # fmt: skip
def test_a_changed_setting_trains_as_the_configured_one(
    tiny_policy, sample, make_learner, weights_of, changed, configured, change, as_if
):
    """Every optimizer group by the same factor; reward, KL controller and logprobs by the new values."""
    policy, reference = tiny_policy(), tiny_policy(seed=1)
    mine, theirs, control = (make_learner(policy, **config) for config in (configured, as_if, configured))
    settings = replace(RunSettings.of(mine.config), **change)
    for step in range(2):
        samples = {"step": step, "first_draw": 16 * step, "temperature": settings.temperature}
        trajectories = sample(mine.plain.policy, reference=reference, **samples)
        reports = [mine.update(trajectories, settings), theirs.update(trajectories)]
        assert reports[0].metrics == reports[1].metrics
        assert changed(weights_of(mine), weights_of(theirs)) == []
        if step == 0:
            control.update(trajectories)
            assert changed(weights_of(mine), weights_of(control)) or mine.controller.coef != control.controller.coef
    assert mine.controller.coef == theirs.controller.coef
    rates = [[group["lr"] for o in learner.optimizers for group in o.param_groups] for learner in (mine, theirs)]
    assert rates[0] == rates[1]


def test_settings_as_configured_are_those_of_the_config(tiny_policy, sample, make_learner, weights_of, changed):
    policy = tiny_policy()
    mine, theirs = make_learner(policy), make_learner(policy)
    mine.update(sample(policy), RunSettings.of(mine.config))
    theirs.update(sample(policy))
    assert changed(weights_of(mine), weights_of(theirs)) == []


def test_a_run_has_either_a_coefficient_or_a_target_and_says_only_that():
    fixed = PPOConfig(data=["texts"], updates=1, kl={"type": "fixed", "coef": 0.3})
    adaptive = PPOConfig(data=["texts"], updates=1, kl={"type": "adaptive", "target": 5.0})
    assert RunSettings.of(fixed).present() == {"temperature": 1.0, "learning_rate": 1e-4, "kl_coef": 0.3}
    assert RunSettings.of(adaptive).present() == {"temperature": 1.0, "learning_rate": 1e-4, "kl_target": 5.0}


def test_after_the_target_is_changed_the_coefficient_goes_on_from_where_it_is(tiny_policy, sample, make_learner):
    policy, reference = tiny_policy(), tiny_policy(seed=1)
    learner = make_learner(policy, **REFERENCE | {"kl": ADAPTIVE | {"target": 1e-6}})
    settings = RunSettings.of(learner.config)
    coefs = []
    for step, target in enumerate((1e-6, 1e-6, 1e6)):
        trajectories = sample(learner.plain.policy, reference=reference, step=step, first_draw=16 * step)
        report = learner.update(trajectories, replace(settings, kl_target=target))
        coefs.append(report.metrics["kl_coef"])
    factor = 1 + 0.2 * 16 / 100
    assert [*coefs, learner.controller.coef] == pytest.approx(
        [0.2, 0.2 * factor, 0.2 * factor**2, 0.2 * factor**2 * (1 - 0.2 * 16 / 100)], rel=1e-12
    )
