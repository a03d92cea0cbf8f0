"""A node dies, is cut off, is drained: the run goes on, and leaves the same bytes."""

import time

import pytest

pytestmark = [pytest.mark.ray, pytest.mark.slow]

UPDATES = 40
SETTINGS = (f"ppo.updates={UPDATES}", "ppo.checkpoint_every=10")


def others(watched):
    """Id of the node that has no replica, and the workers there."""
    pools = watched.status().pools
    (replica,) = pools["reward"].members
    there = [member for member in pools["rollout"].members if member.node not in (None, replica.node)]
    return there[0].node, [member.slot for member in there]


def assert_workers_went_on_elsewhere(watched, node, *, left):
    """Those of the evaluation that follows included; so many of the two that began were on the node."""
    began = [node[:8] in text for text in watched.events("active") if "worker" in text]
    assert began[:2].count(True) == left
    assert began[2:]
    assert not any(began[2:])


def test_a_node_that_dies_with_its_workers_costs_no_sample(machines, seen, undisturbed, Outcome):
    machines.start_head('{"head": 2, "roll": 4}')
    machines.start_other('{"roll": 8}')
    run = machines.run(*SETTINGS)
    watched = seen(run)
    node, slots = others(watched)
    watched.busy(slots[0])
    died_at = time.time()
    machines.other.die()
    run.end(0)
    outcome = Outcome(run.folder, None, watched, "")
    outcome.tell_pause("a node dies with its workers", died_at)
    outcome.assert_whole(UPDATES)
    outcome.assert_same_bytes(undisturbed(*SETTINGS), UPDATES)
    lost = [next(word for word in text.split() if word.startswith("worker-")) for text in watched.events("restart")]
    # Once each, or more often: until Ray misses the node, it may place those that follow there too.
    assert set(lost) == set(slots), watched.events("restart")
    assert_workers_went_on_elsewhere(watched, node, left=len(slots))


def test_a_link_that_is_cut_is_noticed_and_the_other_side_is_used_again_once_it_is_back(
    machines, seen, undisturbed, Outcome
):
    machines.start_head('{"head": 2, "roll": 1}')
    machines.start_other('{"roll": 1}')
    run = machines.run("ppo.updates=100000", "ppo.checkpoint_every=0")
    watched = seen(run)
    node, (slot,) = others(watched)
    watched.busy(slot)
    cut_at = time.time()
    step = watched.status().step
    machines.cut()
    watched.await_status(lambda s: watched.member(s, slot).restarts >= 1, "the silence is noticed")
    watched.await_step(step + 3)
    assert "no sign of life" in watched.events("restart")[0]
    Outcome(run.folder, None, watched, "").tell_pause("a link is cut, with one of two workers behind it", cut_at)
    machines.mend()
    watched.await_status(lambda s: watched.member(s, slot).state == "active", "a worker on the other side again")
    assert watched.member(watched.status(), slot).node == node

    machines.other.die()
    machines.start_other('{"roll": 2}')
    watched.controls.scale(rollout_workers=3)
    status = watched.await_status(lambda s: s.pools["rollout"].active == 3, "two workers on the node that came")
    nodes = {member.node for member in status.pools["rollout"].members}
    assert node not in nodes
    assert len(nodes) == 2
    watched.await_step(status.step + 3)
    watched.controls.stop()
    printed = run.end(3)
    updates = len(Outcome(run.folder, None, watched, "").lines()) + 2
    assert f"enough: stopped after update {updates - 2} of 100000" in printed

    settings = (f"ppo.updates={updates}", "ppo.checkpoint_every=0")
    machines.run(*settings).end(0)
    outcome = Outcome(run.folder, None, watched, "")
    outcome.assert_whole(updates)
    outcome.assert_same_bytes(undisturbed(*settings), updates)


def test_payloads_that_die_with_their_node_before_the_learner_has_them_are_made_again(
    machines, seen, undisturbed, Outcome
):
    """The learner is stopped for so long, so that it is certain that it has not fetched them."""
    machines.start_head('{"head": 2}')
    machines.start_other('{"roll": 8}')
    run = machines.run(*SETTINGS, "reward_service.resources={roll=1}", "learner.heartbeat_timeout_s=120")
    watched = seen(run)
    assert len({m.node for pool in watched.status().pools.values() for m in pool.members}) == 1, "all but the learner"
    pid = watched.status().learner.pid
    while True:
        watched.await_status(lambda s: s.phase == "collect" and s.ledger["in_flight"] > 0, "samples on their way")
        machines.head.inside("kill", "-STOP", str(pid)).wait(timeout=60)
        status = watched.await_status(lambda s: s.ledger["buffered"] == 32, "a batch that waits for the learner")
        if not (run.folder / "trajectories" / f"update_{status.step + 1:06d}.safetensors").exists():
            break
        machines.head.inside("kill", "-CONT", str(pid)).wait(timeout=60)  # it was in its update already
    died_at = time.time()
    machines.other.die()
    watched.await_status(lambda s: all(m.restarts for m in s.pools["rollout"].members), "the loss of the workers")
    machines.start_other('{"roll": 8}')
    machines.head.inside("kill", "-CONT", str(pid)).wait(timeout=60)
    run.end(0)
    outcome = Outcome(run.folder, None, watched, "")
    outcome.tell_pause("a node dies with workers, replica and payloads, and another comes at once", died_at)
    outcome.assert_whole(UPDATES)
    outcome.assert_same_bytes(undisturbed(*SETTINGS), UPDATES)
    assert watched.events("learner_lost") == []


def test_a_node_that_dies_with_the_learner_takes_weights_and_payloads_along_and_the_run_goes_on(
    machines, seen, undisturbed, Outcome
):
    machines.start_head('{"head": 2, "roll": 4}')
    machines.start_other('{"learn": 1}')
    run = machines.run(*SETTINGS, "learner.resources={learn=1}")
    watched = seen(run)
    watched.await_status(lambda s: s.newest_checkpoint is not None, "a checkpoint")
    died_at = time.time()
    machines.other.die()
    machines.start_other('{"learn": 1}')
    run.end(0)
    outcome = Outcome(run.folder, None, watched, "")
    outcome.tell_pause("a node dies with the learner, and another comes at once", died_at)
    outcome.assert_whole(UPDATES)
    outcome.assert_same_bytes(undisturbed(*SETTINGS), UPDATES)
    assert outcome.lines()[-1]["identity"].split(".")[0] != "0", "as a new lineage"
    assert watched.events("restart") == [], "workers and replica stay"


@pytest.mark.parametrize("machines", ["disabled"], indirect=True)
def test_a_node_that_is_drained_gets_no_new_work_and_no_restart_is_counted(machines, seen, undisturbed, Outcome):
    machines.start_head('{"head": 2, "roll": 4}')
    machines.start_other('{"roll": 8}')
    run = machines.run(*SETTINGS)
    watched = seen(run)
    node, slots = others(watched)
    watched.busy(slots[-1])
    drained_at = time.time()
    machines.drain(node)
    run.end(0)
    outcome = Outcome(run.folder, None, watched, "")
    outcome.tell_pause("a node is drained, with the workers on it", drained_at)
    outcome.assert_whole(UPDATES)
    outcome.assert_same_bytes(undisturbed(*SETTINGS), UPDATES)
    assert watched.events("restart") == []
    assert len([text for text in watched.events("drain") if node[:8] in text]) == len(slots)
    assert_workers_went_on_elsewhere(watched, node, left=len(slots))
