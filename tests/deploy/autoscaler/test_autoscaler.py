"""The autoscaler beside a stage: what it asks for, whom it tells, and when it keeps still."""

import io
from datetime import UTC, datetime

import pytest
from prometheus_client import CollectorRegistry
from rich.console import Console

from common.metrics import RunMetrics
from deploy.autoscaler.autoscaler import Autoscaler
from deploy.control.run_status import MemberStatus, PoolStatus, RunStatus
from deploy.control.view import print_status
from deploy.ppo.pulse import Cycle

CHUNKS = 8


class Stage:
    """A stage whose workers take work at once."""

    def __init__(self):
        self.orders = []
        self.facts = {}
        self.workers = 1
        self.starting = 0

    def status(self):
        states = ["active"] * self.workers + ["starting"] * self.starting
        members = tuple(MemberStatus(slot=f"worker-{i}", state=state) for i, state in enumerate(states))
        pools = {"rollout": PoolStatus(target=len(states), active=self.workers, members=members)}
        facts = {"step": 3, "updates": 9, "pools": pools, **self.facts}
        return RunStatus(run="tiny", pid=1, started_at=datetime.now(UTC), stage="ppo", **facts)

    def scale(self, *, rollout_workers, reward_replicas):
        self.orders.append((rollout_workers, reward_replicas))
        self.workers = rollout_workers
        return self.status()


@pytest.fixture
def stage():
    return Stage()


@pytest.fixture
def metrics():
    return RunMetrics(CollectorRegistry())


@pytest.fixture
def notes():
    return []


@pytest.fixture
def autoscaler(stage, metrics, notes, configured):
    return Autoscaler(
        configured(confirm_updates=2),
        CHUNKS,
        controls=stage,
        metrics=metrics,
        note=lambda event, text: notes.append((event, text)),
        clock=lambda: 0.0,
    )


def cycle(workers, *, other_s=2.0, **facts):
    """Eight chunks of 1 s."""
    collect_s = -(-CHUNKS // workers)
    update_s = collect_s + other_s
    busy = {"rollout": CHUNKS / (workers * update_s), "reward": 0.1}
    return Cycle(update_s=update_s, learner_wait=collect_s / update_s, busy=busy, **facts)


def feed(autoscaler, stage, updates, **facts):
    for _ in range(updates):
        autoscaler.updated(cycle(stage.workers, **facts))


def test_it_scales_as_a_person_would_and_says_why(autoscaler, stage, notes, metrics):
    feed(autoscaler, stage, 3)
    assert stage.orders == [(4, None)], "replicas are left alone"
    [(event, text)] = notes
    assert event == "autoscale"
    assert text == (
        "scale up to 4 rollout workers: the learner waits 80 % of 10 s with 1 worker, and would wait about 50 % of "
        "4 s with 4"
    )
    value = metrics.registry.get_sample_value
    assert value("minichatgpt_autoscaler_target", {"role": "rollout"}) == 4
    decided = {d: value("minichatgpt_autoscaler_decisions_total", {"direction": d}) for d in ("up", "hold")}
    assert decided == {"up": 1, "hold": 2}
    status = autoscaler.status()
    assert (status.min_workers, status.max_workers, status.direction) == (1, 8, "up")
    assert status.reason in text


def test_it_takes_workers_away_where_the_learner_hardly_waits(autoscaler, stage, notes):
    stage.workers = 4
    feed(autoscaler, stage, 3, other_s=20.0)
    assert stage.orders == [(1, None)]
    assert notes[0][1].startswith("scale down to 1 rollout workers: the learner waits 9 % of 22 s with 4 workers")


@pytest.mark.parametrize("facts", [{"pause": "asked"}, {"pause": "paused"}, {"stopping": "enough"}, {"step": 9}])
def test_it_keeps_still_while_the_run_pauses_or_ends(autoscaler, stage, notes, facts):
    feed(autoscaler, stage, 2)
    stage.facts = facts
    feed(autoscaler, stage, 5)
    assert (stage.orders, notes) == ([], [])
    stage.facts = {}
    feed(autoscaler, stage, 1)
    assert stage.orders


def test_it_waits_for_those_on_their_way(autoscaler, stage):
    feed(autoscaler, stage, 2)
    stage.starting = 2
    feed(autoscaler, stage, 5)
    assert not stage.orders
    assert autoscaler.status().reason == "1 of 3 workers take work, 2 are on their way"


def test_what_keeps_workers_from_being_added_is_told_once(autoscaler, stage, notes):
    feed(autoscaler, stage, 6, score_queued_s=3.0)
    assert [event for event, _ in notes] == ["autoscale"]
    assert notes[0][1].startswith("no more rollout workers: chunks waited 3 s on average for a reward replica")
    assert not stage.orders


def test_a_persons_order_is_the_new_number(autoscaler, stage):
    feed(autoscaler, stage, 2)
    stage.scale(rollout_workers=8, reward_replicas=None)
    feed(autoscaler, stage, 1)
    assert autoscaler.status().reason == "somebody asked for 8 workers where 1 were wanted; that stands"
    assert stage.orders == [(8, None)]


def test_before_the_first_update_it_has_decided_nothing(autoscaler):
    assert autoscaler.status().direction == "hold"
    assert autoscaler.status().reason == "it decides after the next update"


def test_status_in_the_terminal_shows_what_it_decided_last_and_nothing_where_there_is_none(autoscaler, stage):
    feed(autoscaler, stage, 3)
    shown = []
    for said in (autoscaler.status(), None):
        console = Console(file=io.StringIO(), width=300)
        print_status(stage.status().model_copy(update={"autoscaler": said}), console)
        shown.append([line for line in console.file.getvalue().splitlines() if line.startswith("autoscaler")])
    [[line], nothing] = shown
    assert "1 to 8 workers · up: the learner waits 80 % of 10 s with 1 worker" in line
    assert nothing == []
