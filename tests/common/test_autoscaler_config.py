"""Bounds of the autoscaler: what does not fit is refused, and what it costs to mend is said."""

import pytest

from common.config_base import settings_that_matter
from common.errors import ConfigError


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (["autoscaler.min_workers=9"], "min_workers=9 is more than max_workers=8; lower it"),
        (["autoscaler.scale_down_wait_fraction=0.5"], "must be below scale_up_wait_fraction=0.5"),
        (["autoscaler.enabled=true", "rollout.workers=9"], "rollout.workers=9, with which the run starts, is not"),
        (["autoscaler.enabled=true", "autoscaler.min_workers=3"], "autoscaler.min_workers=3 and"),
        (["autoscaler.enabled=true", "rollout.min_workers=2"], "set autoscaler.min_workers to 2 or more"),
        (["autoscaler.cooldown_s=3"], "unknown key 'cooldown_s'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tiny, changes, said):
    with pytest.raises(ConfigError, match=said):
        tiny(*changes)


def test_it_is_off_unless_it_is_asked_for_and_then_its_bounds_bind_nobody(tiny):
    assert not tiny().autoscaler.enabled
    assert tiny("rollout.workers=9").rollout.workers == 9


def test_a_run_goes_on_with_other_settings_of_it(tiny):
    assert settings_that_matter(tiny("autoscaler.enabled=true", "autoscaler.max_workers=3")) == settings_that_matter(
        tiny()
    )
