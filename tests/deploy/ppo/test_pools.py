"""What surrounds running pools."""

import gc

from deploy.ppo.pools import imports_left_alone


def test_the_collector_passes_over_what_is_there_while_pools_run_and_sees_it_again_afterwards():
    there = len(gc.get_objects())
    with imports_left_alone():
        assert gc.get_freeze_count() > there / 2
        assert len(gc.get_objects()) < there / 2
    assert gc.get_freeze_count() == 0
    assert len(gc.get_objects()) > there / 2
