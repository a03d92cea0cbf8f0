"""Several samples of each prompt, and a nucleus, through a whole run in one process."""

import json

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from common.seeds import sample_seed
from deploy.run import run_pipeline
from learner.trajectory_file import read_trajectories

GROUPS = ("ppo.advantage=rloo", "ppo.samples_per_prompt=4", "ppo.checkpoint_every=2")


def updates_of(folder):
    return [read_trajectories(file) for file in sorted((folder / "trajectories").iterdir())]


class CutOffError(Exception):
    """As good as kill -9: nothing in the run expects it."""


GROUP_NORM = ("ppo.advantage=group_norm", "ppo.kl={type='fixed', coef=0}", "ppo.kl_loss_coef=0.1")


@pytest.mark.parametrize(
    "advantage",
    [
        ("ppo.advantage=rloo",),
        pytest.param(("ppo.advantage=gae",), marks=pytest.mark.slow),
        pytest.param(GROUP_NORM, marks=pytest.mark.slow),
    ],
)
def test_a_run_with_groups_that_was_cut_off_goes_on_to_the_same_bytes(train, undisturbed, advantage):
    def cut_off(controls, update):
        if update == 4:
            raise CutOffError

    settings = (*advantage, *GROUPS[1:])
    assert isinstance(train(*settings, before_update=cut_off).error, CutOffError)
    outcome = train(*settings).ok()
    outcome.assert_same_as(undisturbed(*settings))
    for update, columns in enumerate(updates_of(outcome.folder)):
        draws = [draw for draw in range(8 * update, 8 * update + 8) for _ in range(4)]
        assert columns["draw_index"].tolist() == draws
        assert columns["sample_index"].tolist() == [0, 1, 2, 3] * 8
        assert columns["seed"].tolist() == [sample_seed(7, draw, k % 4) for k, draw in enumerate(draws)]
        assert columns["prompt_id"].reshape(8, 4).std(axis=1).max() == 0, "a group has one prompt"
    assert outcome.ledger()["trained"] == 6 * 32
    assert all(0 <= row["metrics"]["zero_std_group_share"] <= 1 for row in outcome.rows())


def test_a_lost_learner_and_another_number_of_workers_change_no_byte_of_groups(train, undisturbed, poison):
    poison(4)
    outcome = train(*GROUPS, "rollout.workers=1").ok()
    outcome.assert_same_as(undisturbed(*GROUPS))
    assert outcome.ledger()["rolled_back"] == 64


def test_an_evaluation_samples_from_the_nucleus_it_is_told_to(tiny, run_copy):
    """Of a nucleus so small that one token is left, it is greedy decoding; before and after PPO."""
    run_pipeline(tiny("evaluate.top_p=1e-6"), run_copy, local=True, address=None, again=frozenset())
    lines = [json.loads(line) for line in (run_copy / "samples.jsonl").read_text(encoding="utf-8").splitlines()]
    shown = [line for line in lines if line["kind"] == "heldout"]
    assert len(shown) == 6
    tokenizer = AutoTokenizer.from_pretrained(run_copy / "models" / "sft")
    for when, name in (("before", "sft"), ("after", "ppo")):
        policy = AutoModelForCausalLM.from_pretrained(run_copy / "models" / name)
        for line in shown:
            ids = tokenizer(line["prompt"], return_tensors="pt", add_special_tokens=False).input_ids
            greedy = policy.generate(ids, do_sample=False, max_new_tokens=8)[0, ids.shape[1] :]
            words = tokenizer.decode(greedy, skip_special_tokens=True).split()
            sampled = line[when].split()
            assert sampled
            assert sampled == words[: len(sampled)]
