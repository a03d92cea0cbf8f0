"""An answer that comes token by token: the right tokens, and text that no token's end cuts through."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from actors.chat import INCOMPLETE, Sampling, Speaker, TextStream
from actors.engine import SamplingEngine
from common.seeds import mix
from common.text import decode, encode, train_word_tokenizer

WORDS = "the film is good , isn't it ? yes ! a bad one : no"
EOS = frozenset({2})
NOTHING = np.zeros(0, np.int32)


@pytest.fixture(scope="module")
def words():
    return train_word_tokenizer([WORDS], vocabulary_size=64, max_tokens=64)


@pytest.fixture(scope="module")
def letters():
    """A tokenizer of single bytes, as of GPT-2 without merges: a letter beyond ASCII spans two to four tokens."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: i for i, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<eos>")
    made.clean_up_tokenization_spaces = False
    return made


def chain(table_policy, vocabulary, follows, otherwise=0):
    """A policy that says after each token the one that `follows` names."""
    table = np.full((vocabulary, vocabulary), 1e-30)
    for token in range(vocabulary):
        table[token, follows.get(token, otherwise)] = 1.0
    return table_policy(table)


def pieces(tokenizer, ids, before=NOTHING):
    stream = TextStream(tokenizer, before)
    return [*(stream.push(int(i)) for i in ids), stream.rest()]


# --- text


@settings(max_examples=50)
@given(text=st.text(st.characters(exclude_categories=["Cs"], exclude_characters=INCOMPLETE), max_size=20))
def test_no_piece_cuts_a_letter_and_all_pieces_are_the_text(letters, text):
    shown = pieces(letters, encode(letters, [text])[0])
    assert "".join(shown) == text
    assert not [piece for piece in shown if INCOMPLETE in piece]


def test_letters_come_as_soon_as_they_are_whole(letters):
    assert pieces(letters, encode(letters, ["aé語🎬"])[0]) == ["a", "", "é", "", "", "語", "", "", "", "🎬", ""]


def test_bytes_that_never_become_a_letter_are_shown_at_the_end(letters):
    half = encode(letters, ["a語"])[0][:-1]
    assert pieces(letters, half) == ["a", "", "", INCOMPLETE]


def test_words_and_marks_have_the_spaces_of_the_whole_text(words):
    ids = encode(words, ["is good , isn't it ?"])[0]
    before = encode(words, ["the film"])[0]
    assert "".join(pieces(words, ids, before)) == " is good, isn't it?"
    assert "".join(pieces(words, ids)) == "is good, isn't it?"


def test_a_mark_after_the_prompt_stands_close_to_it(words):
    assert pieces(words, encode(words, ["! no"])[0], encode(words, ["the film"])[0]) == ["!", " no", ""]


# --- tokens


@pytest.mark.parametrize(("temperature", "top_p"), [(0.7, 1.0), (1.0, 1.0), (1.0, 0.5)])
def test_an_answer_is_what_a_rollout_worker_samples(architecture, words, temperature, top_p):
    policy = architecture(vocab_size=len(words))
    prompt, sampling = (
        np.array([5, 9, 6], np.int32),
        Sampling(temperature=temperature, top_p=top_p, max_tokens=20, seed=11),
    )
    speaker = Speaker(policy, words, EOS)
    reply = speaker.answer(prompt, sampling, 4, continues=True)
    text = "".join(reply)
    (sampled,) = SamplingEngine(policy, speaker.eos_ids).sample(
        [prompt], max_new_tokens=[20], seeds=[mix(11, 4)], temperature=temperature, top_p=top_p
    )
    answer = reply.answer()
    assert answer.response_ids.tolist() == sampled.ids.tolist()
    assert answer.ending == sampled.finish
    assert answer.text == text


def test_other_numbers_have_other_noise_and_the_same_number_the_same(llama, words):
    speaker = Speaker(llama(vocab_size=len(words)), words, EOS)

    def said(number, **changes):
        sampling = Sampling(temperature=2.0, max_tokens=12, **changes)
        return "".join(speaker.answer(np.array([4], np.int32), sampling, number, continues=True))

    assert said(1) == said(1) != said(2)
    assert said(1, seed=5) != said(1)


def test_temperature_0_takes_the_likeliest(llama, words):
    policy = llama(vocab_size=len(words))
    prompt = np.array([4, 7], np.int32)
    (greedy,) = SamplingEngine(policy, frozenset({2})).sample(
        [prompt], max_new_tokens=[12], seeds=[0], temperature=1e-4
    )
    reply = Speaker(policy, words, EOS).answer(prompt, Sampling(temperature=0, max_tokens=12), 1, continues=True)
    list(reply)
    assert reply.answer().response_ids.tolist() == greedy.ids.tolist()


def test_top_p_leaves_the_unlikely_out(table_policy, words):
    table = np.full((8, 8), 0.1 / 6)
    table[:, 5], table[:, 6] = 0.5, 0.4
    speaker = Speaker(table_policy(table), words, frozenset())

    def drawn(top_p):
        sampling = Sampling(temperature=1, top_p=top_p, max_tokens=300)
        reply = speaker.answer(np.array([5], np.int32), sampling, 1, continues=True)
        return set(reply._tokens)

    assert drawn(0.3) == {5}
    assert drawn(0.85) == {5, 6}
    assert drawn(1.0) >= {3, 4, 5, 6, 7}


def test_of_tokens_that_are_equally_likely_the_nucleus_is_that_of_the_engine(table_policy, words):
    policy, prompt = table_policy(np.full((8, 8), 1 / 8)), np.array([5], np.int32)
    reply = Speaker(policy, words, frozenset()).answer(
        prompt, Sampling(temperature=1, top_p=0.3, max_tokens=60), 1, continues=True
    )
    (sampled,) = SamplingEngine(policy, frozenset({99})).sample(
        [prompt], max_new_tokens=[60], seeds=[mix(0, 1)], temperature=1, top_p=0.3
    )
    assert list(reply._tokens) == sampled.ids.tolist()


# --- how it ends


@pytest.mark.parametrize("eos", [3, 7])
def test_every_eos_id_ends_an_answer_and_none_is_shown(table_policy, words, eos):
    speaker = Speaker(chain(table_policy, len(words), {4: 5, 5: 6, 6: eos}), words, frozenset({3, 7}))
    reply = speaker.answer(np.array([4], np.int32), Sampling(temperature=0), 1, continues=True)
    text = "".join(reply)
    answer = reply.answer()
    assert answer.ending == "stop"
    assert answer.response_ids.tolist() == [5, 6, eos]
    assert text == answer.text == decode(words, [4, 5, 6])[len(decode(words, [4])) :]


def test_an_answer_ends_where_the_context_does(llama, words):
    policy = llama(vocab_size=len(words), max_position_embeddings=10)
    speaker = Speaker(policy, words, frozenset())
    reply = speaker.answer(np.array([4, 5, 6], np.int32), Sampling(max_tokens=50), 1, continues=True)
    list(reply)
    assert len(reply.answer().response_ids) == 7
    assert reply.answer().ending == "length"


def test_whoever_stops_early_has_what_was_said(table_policy, words):
    speaker = Speaker(chain(table_policy, len(words), {4: 5, 5: 4}), words, EOS)
    reply = speaker.answer(np.array([4], np.int32), Sampling(temperature=0), 1, continues=True)
    heard = [piece for piece, _ in zip(reply, range(3), strict=False)]
    answer = reply.answer()
    assert answer.ending == "interrupted"
    assert answer.text.startswith("".join(heard[:3]))
    assert answer.response_ids.tolist()[:3] == [5, 4, 5]
