"""Other policies on the same held-out prompts: found by name, asked in their own tokens, judged by the same judge."""

import json

import numpy as np
import pytest
from transformers import GPT2Config, GPT2LMHeadModel

from actors.evaluate import wilson_interval
from common.errors import ConfigError
from common.records import Identity, Judgement, Prompt, Rollout
from common.text import encode, train_word_tokenizer
from deploy.chat.answers import Answer
from deploy.evaluation.rivals import head_to_head, reencoded, rival_path
from deploy.pipeline import Pipeline
from deploy.preflight.models import check_rivals

WORDS = ["the film is good and i like it", "the cast is bad"]


@pytest.fixture
def runs(tmp_path):
    """A run that has finished PPO and one that has not, and a model folder."""
    for name in ("done/models/ppo", "begun/models/sft", "begun/models/judge", "model"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "config.json").write_text("{}", encoding="utf-8")
    return tmp_path


def test_a_rival_is_a_run_a_model_folder_or_a_name_on_the_hub(runs):
    assert rival_path("done", runs) == rival_path(str(runs / "done"), runs) == str(runs / "done" / "models" / "ppo")
    assert rival_path(str(runs / "begun" / "models" / "sft"), runs).endswith("begun/models/sft")
    assert rival_path("begun/models/sft", runs) == str(runs / "begun" / "models" / "sft")
    assert rival_path("model", runs) == str(runs / "model")
    assert rival_path("org/name", runs) == "org/name"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        (
            "begun",
            r"no run that has finished PPO \(models/ppo .*\); name one of its policies: begun/models/sft$",
        ),
        ("/nowhere/run", r"/nowhere/run does not exist; runs in .*: begun, done, model"),
    ],
)
def test_what_is_no_rival_is_told_with_what_is_there(runs, name, told):
    with pytest.raises(ConfigError, match=told):
        rival_path(name, runs)


def test_prompts_travel_as_text_and_what_the_other_cannot_read_is_left_out():
    ours = train_word_tokenizer([*WORDS, "a zebra"], vocabulary_size=64, max_tokens=32)
    theirs = train_word_tokenizer(reversed(WORDS), vocabulary_size=64, max_tokens=32)
    texts = ["the film is", "a zebra", "i like"]
    prompts = [Prompt(i, i, ids, 7) for i, ids in enumerate(encode(ours, texts))]
    found = reencoded(prompts, ours, theirs)
    assert [prompt.draw_index for prompt in found] == [0, 2]
    assert [theirs.decode(list(prompt.token_ids)) for prompt in found] == ["the film is", "i like"]
    assert {prompt.max_new_tokens for prompt in found} == {7}
    assert any(list(new.token_ids) != list(prompts[new.draw_index].token_ids) for new in found), "other ids"


def test_special_tokens_stay_where_both_know_the_same_tokens_and_else_have_no_text():
    ours, theirs = (train_word_tokenizer(words, vocabulary_size=64, max_tokens=32) for words in (WORDS, WORDS[:1]))
    prompt = Prompt(0, 0, np.array([ours.eos_token_id, ours.convert_tokens_to_ids("film")], np.int32), 7)
    (same,) = reencoded([prompt], ours, ours)
    np.testing.assert_array_equal(same.token_ids, prompt.token_ids)
    assert reencoded([prompt], ours, theirs) == []


def answer(draw, judge):
    ids = np.array([3, 4], np.int32)
    rollout = Rollout(draw, 0, 0, 0, ids, np.zeros(2, np.float32), Identity(-1, 0), "length")
    return Answer(rollout, Judgement(draw, 0, 0.5, {"judge": judge, "judge_p_positive": 0.4}, "v"), 0.0)


def test_the_winner_is_who_the_judge_prefers_on_the_prompts_that_both_answered():
    ours = {0: answer(0, 1.0), 1: answer(1, 0.0), 2: answer(2, 5.0), 7: answer(7, 9.0)}
    theirs = {0: answer(0, 0.0), 1: answer(1, 0.0), 2: answer(2, 6.0), 9: answer(9, 9.0)}
    found = head_to_head(ours, theirs, ignore=frozenset(), seed=0)
    assert (found["win_rate"], found["prompts"]) == (0.5, 3)
    assert (found["judge_p_positive"], found["truncated_fraction"]) == (pytest.approx(0.4), 1.0)


@pytest.fixture(scope="session")
def gpt2(tmp_path_factory):
    """A policy of another architecture with another tokenizer, with as many positions as asked for."""

    def make(positions):
        folder = tmp_path_factory.mktemp("gpt2")
        tokenizer = train_word_tokenizer(WORDS, vocabulary_size=40, max_tokens=positions)
        shape = GPT2Config(vocab_size=len(tokenizer), n_embd=16, n_layer=1, n_head=2, n_positions=positions,
                           bos_token_id=None, eos_token_id=tokenizer.eos_token_id)  # fmt: skip
        GPT2LMHeadModel(shape).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        return folder

    return make


def evaluate(config, folder):
    from io import StringIO

    from rich.console import Console

    from deploy.local import LocalRuntime

    Pipeline(config, folder, start_runtime=LocalRuntime, console=Console(file=StringIO())).run()
    return json.loads((folder / "stages" / "evaluate.json").read_text(encoding="utf-8"))["metrics"]


def test_a_run_meets_itself_and_a_policy_with_another_tokenizer(tiny, run_copy, gpt2):
    other = gpt2(32)
    before = json.loads((run_copy / "stages" / "evaluate.json").read_text(encoding="utf-8"))["metrics"]
    found = evaluate(tiny(f'evaluate.against=["tiny", "{other}", "{run_copy}/models/sft"]'), run_copy)
    against = found.pop("against")
    assert found == before, "rivals change nothing of the rest"
    mirror, stranger, start = against["tiny"], against[str(other)], against[f"{run_copy}/models/sft"]
    assert mirror["win_rate"] == 0.5, "the same policy, the same noise: ties"
    assert mirror["win_rate_ci95"] == list(wilson_interval(0.5, mirror["prompts"]))
    assert mirror["reward"] == before["reward_after"]
    assert start["win_rate"] == before["win_rate"]
    assert start["judge_p_positive"] == before["judge_p_positive_before"]
    assert stranger["prompts"] + stranger["prompts_unreadable"] == before["prompts"]
    assert stranger["prompts_unreadable"] > 0, "nothing was left out: nothing was tested"


def test_a_rival_with_too_few_positions_is_refused(tiny, run_copy, gpt2):
    other = gpt2(8)
    with pytest.raises(ConfigError, match=r"take up to \d+ positions, and it has 8; shorten"):
        evaluate(tiny(f'evaluate.against=["{other}"]'), run_copy)


def test_a_rival_that_reads_no_prompt_is_refused(tiny, run_copy, gpt2, tmp_path):
    other = gpt2(32)
    train_word_tokenizer(["una pellicola"], vocabulary_size=8, max_tokens=32).save_pretrained(other)
    with pytest.raises(ConfigError, match="reads back none of 6 prompts as the same text"):
        evaluate(tiny(f'evaluate.against=["{other}"]'), run_copy)


def test_the_preflight_names_rivals_that_are_not_there(tiny, tiny_run):
    found = check_rivals(tiny('evaluate.against=["tiny", "/nowhere/run"]'), tiny_run.parent)
    assert [bool(finding.failure) for finding in found] == [False, True]
    assert "tokens known" in found[0].measured
    assert "/nowhere/run does not exist" in found[1].failure
    assert check_rivals(tiny(), tiny_run.parent) == []
