"""A run whose scores are normalised by running statistics, cut off and gone on with; and its learner lost."""

import json

from deploy.run_folder.files import read_json

RUNNING = (
    "ppo.score_normalization={type='running', subtract_mean=true, decay=0.9}",
    "ppo.score_clip=1.5",
    "ppo.checkpoint_every=3",
)


def statistics(outcome, step):
    return read_json(outcome.folder / "checkpoints" / f"step_{step:06d}" / "learner.json")["scores"]


def test_six_updates_are_three_and_three_more_to_the_bit(train, undisturbed):
    def stop(controls, update):
        if update == 3:
            controls.stop_signal.request("enough", exit_code=3)

    first = train(*RUNNING, before_update=stop)
    assert "stopped after update 3 of 6" in str(first.error)
    assert statistics(first, 3)["weight"] > 32
    whole = undisturbed(*RUNNING)
    resumed = train(*RUNNING).ok()
    resumed.assert_same_as(whole)
    assert statistics(resumed, 6) == statistics(whole, 6)
    metrics = whole.rows()[-1]["metrics"]
    assert metrics["score_running_std"] != 1.0
    assert 0 < metrics["score_clipped_fraction"] < 1
    plain = undisturbed("ppo.checkpoint_every=3")
    assert whole.rows()[1]["metrics"] != plain.rows()[1]["metrics"], "normalising did nothing: nothing was tested"


def test_the_statistics_go_back_with_the_weights(train, undisturbed, poison):
    poison(5)
    outcome = train(*RUNNING).ok()
    assert json.dumps(outcome.events()).count("learner_lost") == 1
    outcome.assert_same_as(undisturbed(*RUNNING))
    assert statistics(outcome, 6) == statistics(undisturbed(*RUNNING), 6)
