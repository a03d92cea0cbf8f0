"""A scorer that hangs, raises, or has no number for some texts: those are dropped and replaced, the run goes on."""

from pathlib import Path

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

UPDATES = 4
CALLABLES = Path(__file__).with_name("callables")


def scorers(function, **settings):
    extra = "".join(f", {key}={value}" for key, value in settings.items())
    return (
        f"ppo.updates={UPDATES}",
        "reward_service.request_timeout_s=30",
        "reward_service.scorers=[{type='model'}, "
        f"{{type='function', callable='chaos_rewards:{function}', weight=0.01{extra}}}]",
    )


@pytest.fixture
def with_path(ray_runtime, monkeypatch):
    """Reward replicas whose processes find the functions; the cluster was started without them."""
    from deploy.on_ray import calls as ray_calls

    plain = ray_calls.options

    def options(placement):
        made = plain(placement)
        made["runtime_env"]["env_vars"]["PYTHONPATH"] = str(CALLABLES)
        return made

    monkeypatch.setattr(ray_calls, "options", options)
    return ray_runtime


@pytest.mark.parametrize(
    ("function", "reason"), [("hangs", "reward_timeout"), ("raises", "reward_error"), ("nan", "reward_nonfinite")]
)
def test_texts_that_a_scorer_cannot_judge_are_dropped_and_replaced(break_a_run, with_path, function, reason):
    outcome = break_a_run(*scorers(function, timeout_s=1.0))
    dropped = outcome.ledger()["dropped"]
    assert set(dropped) == {reason}
    assert 0 < dropped[reason] < 32
    outcome.assert_whole(UPDATES, dropped=dropped[reason])
    assert not outcome.watched.events("restart"), "no replica had to be killed for it"


def test_a_scorer_that_judges_nothing_stops_the_run_with_the_reason(break_a_run, with_path):
    outcome = break_a_run(*scorers("always_nan", timeout_s=2.0))
    assert "samples of this update could not be judged: {'reward_nonfinite': 40} (limit 32" in str(outcome.error)
    assert "There is no checkpoint: the same command starts PPO from its beginning" in outcome.error.__notes__[0]
