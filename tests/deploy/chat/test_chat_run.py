"""What a run says of an answer: the numbers of its own evaluation, and a comparison with the policy before PPO."""

import numpy as np
import pytest
import torch

from actors.chat import Answer, Sampling
from common.errors import ConfigError, DataError
from common.text import encode
from deploy.chat.run import RunView, speaker_of
from deploy.chat.session import ChatSession
from deploy.chat.terminal import in_short, in_words
from deploy.run_folder.contents import read_run
from deploy.run_folder.models import RunModels


class Notes:
    """Keeps comparisons and notes; shows nothing."""

    def __init__(self):
        self.sides, self.notes = [], []

    def prompt(self, text):
        pass

    piece = prompt

    def end(self):
        pass

    def note(self, text):
        self.notes.append(text)

    def compare(self, sides):
        self.sides.append(sides)


def view_of(folder, name="ppo"):
    run = RunModels(folder)
    policy = run.named(name)
    return RunView(run, policy, speaker_of(policy, torch.device("cpu")), {})


def answer_of(view, prompt, response):
    ids = [encode(view.speaker.tokenizer, [text])[0] for text in (prompt, response)]
    return Answer(ids[0], ids[1], response, "length")


@pytest.fixture(scope="module")
def view(tiny_run):
    made = view_of(tiny_run)
    yield made
    made.close()


def test_a_held_out_answer_has_the_scores_of_the_evaluation(view, tiny_run):
    """But for the EOS token, which texts do not show, they are the same ids."""
    lines = read_run(tiny_run).heldout
    assert lines
    for line in lines:
        verdict = view.score(answer_of(view, line.prompt, line.after), view.speaker)
        assert verdict.parts["reward_model"] == pytest.approx(line.score_after, abs=1e-5)
        assert verdict.judge_p_positive == pytest.approx(line.judge_after, abs=1e-5)


def test_the_score_is_that_of_ppo_with_its_baseline(run_copy):
    path = run_copy / "config.toml"
    path.write_text(path.read_text().replace('score_baseline = "none"', 'score_baseline = "prompt"'))
    view = view_of(run_copy)
    assert view.run.config.ppo.score_baseline == "prompt"
    verdict = view.score(answer_of(view, "this film", "is good"), view.speaker)
    assert verdict.score == pytest.approx(verdict.parts["reward_model"] - verdict.parts["prompt"])
    assert verdict.parts["prompt"] != 0


def test_kl_is_measured_against_the_policy_before_ppo(view):
    answer = answer_of(view, "this film", "is good")
    ids = torch.from_numpy(np.concatenate([answer.prompt_ids, answer.response_ids])).long()[None]
    temperature = view.run.config.ppo.temperature

    def logprobs(speaker):
        with torch.inference_mode():
            table = torch.log_softmax(speaker.policy(input_ids=ids).logits[0] / temperature, -1)
        return table[1:3].gather(-1, ids[0, 2:, None]).sum()

    verdict = view.score(answer, view.speaker)
    expected = float(logprobs(view.speaker) - logprobs(view.before()))
    assert expected != 0
    assert verdict.kl_seq_sum == pytest.approx(expected, abs=1e-5)
    assert verdict.kl_token_mean == pytest.approx(expected / 2, abs=1e-5)
    assert view.score(answer, view.before()).kl_seq_sum == 0


def test_nothing_said_has_no_score(view):
    answer = Answer(np.array([4], np.int32), np.zeros(0, np.int32), "", "interrupted")
    with pytest.raises(DataError, match="no word"):
        view.score(answer, view.speaker)


def test_a_reward_model_that_is_not_trained_yet_is_said(run_copy):
    (run_copy / "stages" / "reward_model.json").unlink()
    view = view_of(run_copy, "sft")
    with pytest.raises(ConfigError, match="has not trained its reward model yet"):
        view.score(answer_of(view, "this film", "is good"), view.speaker)


def test_before_and_after_ppo_answer_the_same_with_the_same_noise(view):
    session = ChatSession(view.speaker, Notes(), Sampling(max_tokens=6, seed=2), is_chat=False, view=view)
    session.take("/compare this film")
    (((before, before_verdict), (after, after_verdict)),) = session.screen.sides
    ids = encode(view.speaker.tokenizer, ["this film"])[0]
    for said, speaker in ((before, view.before()), (after, view.speaker)):
        reply = speaker.answer(ids, session.sampling, 1, continues=True)
        assert said == "this film" + "".join(reply)
    assert (before_verdict.kl_seq_sum, after_verdict.kl_seq_sum) != (0, 0)
    assert session.answer is None, "a comparison is no part of the talk"


def test_a_policy_before_ppo_has_nothing_to_be_compared_with(tiny_run):
    view = view_of(tiny_run, "sft")
    session = ChatSession(view.speaker, Notes(), Sampling(max_tokens=6), is_chat=False, view=view)
    session.take("/compare this film")
    assert "--model ppo" in session.screen.notes[-1]


def test_a_comparison_without_a_score_says_why_and_is_shown(run_copy):
    (run_copy / "stages" / "reward_model.json").unlink()
    view = view_of(run_copy)
    session = ChatSession(view.speaker, Notes(), Sampling(max_tokens=6), is_chat=False, view=view)
    session.take("/compare this film")
    assert "reward model" in session.screen.notes[-1]
    assert [verdict for _, verdict in session.screen.sides[0]] == [None, None]


def test_a_verdict_in_words_names_every_number(view):
    verdict = view.score(answer_of(view, "this film", "is good"), view.speaker)
    words = in_words(verdict)
    assert f"{verdict.parts['reward_model']:+.3f}" in words["reward_model"]
    assert f"{verdict.parts['reward_model_p_positive']:.1%}" in words["reward_model"]
    assert f"{verdict.judge_p_positive:.1%}" in words["judge"]
    assert f"{verdict.kl_seq_sum:.2f} nats" in words["KL to the policy before PPO"]
    assert in_short(verdict).startswith(f"score {verdict.score:+.2f} · judge ")
