"""Runs in which generation is ahead of learning (`ppo.max_staleness` of 1): whole, cut off, rolled back."""

import json

import pytest

from common.errors import ConfigError, RollBack
from deploy.control.run_status import SettingsRequest
from deploy.replay.replay import replay
from deploy.run_folder.recorded_run import open_recorded
from learner.trajectory_file import read_trajectories

AHEAD = ("ppo.max_staleness=1",)
UPDATES, BATCH = 6, 32


def columns_of(run):
    return [read_trajectories(path) for path in sorted((run.folder / "trajectories").iterdir())]


def draws_of(run):
    return [int(draw) for columns in columns_of(run) for draw in columns["draw_index"]]


def test_every_update_but_the_first_trains_on_samples_of_the_weights_before(once):
    run = once(*AHEAD)
    assert [set(columns["step"].tolist()) for columns in columns_of(run)] == [{0}, {0}, {1}, {2}, {3}, {4}]
    rows = [row["metrics"] for row in run.rows()]
    assert [row["staleness_mean"] for row in rows] == [0, 1, 1, 1, 1, 1]
    assert "stale_kl" not in rows[0]
    assert rows[0]["fresh_kl"] < 1e-6, "in one process worker and learner compute alike"
    assert all("fresh_kl" not in row and row["stale_kl"] > 0 for row in rows[1:])
    assert all(row["importance_max"] > 1 for row in rows[1:])


def test_every_draw_is_trained_once_and_none_is_generated_for_nothing(once):
    run = once(*AHEAD)
    assert sorted(draws_of(run)) == list(range(UPDATES * BATCH))
    ledger = run.ledger()
    assert (ledger["dispatched"], ledger["trained"], ledger["in_flight"]) == (UPDATES * BATCH, UPDATES * BATCH, 0)


def test_in_one_process_a_run_ahead_is_the_same_each_time(once, train):
    again = train(*AHEAD).ok()
    again.assert_same_as(once(*AHEAD))


def test_the_first_update_has_the_same_samples_as_without_running_ahead(once):
    first = [run.folder / "trajectories" / "update_000001.safetensors" for run in (once(*AHEAD), once())]
    assert first[0].read_bytes() == first[1].read_bytes()


def test_what_was_on_its_way_when_a_run_was_cut_off_is_done_first_when_it_goes_on(train):
    def stop(controls, update):
        if update == 5:
            controls.stop("a test")

    ahead = (*AHEAD, "ppo.checkpoint_every=2")
    cut = train(*ahead, before_update=stop)
    assert cut.error is not None
    states = [json.loads((path / "state.json").read_text()) for path in (cut.folder / "checkpoints").iterdir()]
    last = max(states, key=lambda state: state["rollouts"]["next_draw_index"])["rollouts"]
    assert len(last["undelivered"]) == BATCH
    whole = train(*ahead).ok()
    assert sorted(draws_of(whole)) == list(range(UPDATES * BATCH)), "none lost, none twice"
    ledger = whole.ledger()
    assert ledger["trained"] == UPDATES * BATCH
    assert ledger["dispatched"] == ledger["trained"] + ledger["rolled_back"]


def test_the_temperature_stays_for_samples_are_on_their_way_with_it(train):
    seen = []

    def order(controls, update):
        if update == 2:
            with pytest.raises(ConfigError, match=r"temperature=0\.5 cannot be changed while ppo\.max_staleness=1"):
                controls.change(SettingsRequest(temperature=0.5))
            controls.change(SettingsRequest(learning_rate=1e-5))
            seen.append(update)

    run = train(*AHEAD, "ppo.updates=3", before_update=order).ok()
    assert seen == [2]
    assert [row["settings"]["learning_rate"] == 1e-5 for row in run.rows()] == [False, False, True]


def test_a_lost_learner_costs_no_draw_and_no_draw_is_trained_twice(train, poison):
    poison(5)
    run = train(*AHEAD, "ppo.checkpoint_every=2").ok()
    assert "learner_lost" in {event for event, _ in run.events()}
    assert sorted(draws_of(run)) == list(range(UPDATES * BATCH))
    assert {row["identity"].split(".")[0] for row in run.rows()[-2:]} == {"1"}
    ledger = run.ledger()
    assert ledger["trained"] == UPDATES * BATCH
    assert ledger["rolled_back"] == ledger["dispatched"] - ledger["trained"] > 0


def test_after_a_guard_rails_rollback_neither_trained_nor_waiting_prompts_come_again(train):
    def harm(controls, update):
        if update == 5 and not done:
            done.append(update)
            raise RollBack("a test", before_step=3)

    done = []
    run = train(*AHEAD, "ppo.checkpoint_every=2", before_update=harm).ok()
    draws = draws_of(run)
    asked = BATCH * 5  # five updates' worth were sent before the end of the fourth
    assert sorted(draws[: 2 * BATCH]) == list(range(2 * BATCH))
    assert sorted(draws[2 * BATCH :]) == list(range(asked, asked + 4 * BATCH))


def test_updates_of_older_samples_are_replayed_to_the_last_bit(once):
    found = replay(open_recorded(once(*AHEAD).folder, from_step=0), 4, lambda done, total, text: None)
    assert found.is_same
    assert len(found.updates) == 4


def test_chunks_that_no_update_ends_with_are_parted_between_groups(train):
    run = train(*AHEAD, "ppo.samples_per_prompt=4", "rollout.chunk_sequences=12", "ppo.trajectories_per_update=16").ok()
    samples = [
        (int(draw), int(k))
        for columns in columns_of(run)
        for draw, k in zip(columns["draw_index"], columns["sample_index"], strict=True)
    ]
    assert sorted(samples) == [(draw, k) for draw in range(UPDATES * 4) for k in range(4)]
    for columns in columns_of(run):
        assert columns["sample_index"].tolist() == [0, 1, 2, 3] * 4, "a group is trained in one update"
