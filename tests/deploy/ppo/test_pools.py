"""What surrounds running pools."""

import gc

import pytest

from deploy.ppo.pools import imports_left_alone


def test_the_collector_passes_over_what_is_there_while_pools_run_and_sees_it_again_afterwards():
    there = len(gc.get_objects())
    with pytest.raises(KeyError), imports_left_alone():
        assert gc.get_freeze_count() > there / 2
        assert len(gc.get_objects()) < there / 2
        raise KeyError
    assert gc.get_freeze_count() == 0
    assert len(gc.get_objects()) > there / 2
